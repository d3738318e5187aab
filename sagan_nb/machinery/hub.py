"Serves chapter 13: weights on the Hugging Face hub, as hf:USER/REPO or hf:USER/REPO@REVISION."
import os
import re
from pathlib import Path

from ..core import Refused

REPO_NAME = r'hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?'
NO_HUB = 'the hub needs an optional package: pip install "sagan_nb[hub]"'


def is_repo(
    what,                         # what a user named
)->bool:
    "Does this name a repository of the hub? Without hf: it would be a path."
    return re.fullmatch(REPO_NAME, str(what)) is not None


def repo_of(
    name:str,                     # hf:USER/REPO, or with @REVISION
)->tuple:                         # USER/REPO, revision or None
    "Take a name to pieces. Raises Refused for anything else."
    found = re.fullmatch(REPO_NAME, str(name))
    if not found: raise Refused(f'{name}: say hf:USER/REPO, or hf:USER/REPO@REVISION')
    return found.groups()


def from_hub(
    name:str,                     # hf:USER/REPO, or with @REVISION to pin it
)->Path:                          # a file of weights
    "Download model.safetensors of a repository once. Raises Refused without the package, the network or the file."
    repo, revision = repo_of(name)
    try: from huggingface_hub import hf_hub_download
    except ImportError: raise Refused(NO_HUB) from None
    try:
        endpoint = os.environ.get('HF_ENDPOINT')
        return Path(hf_hub_download(repo, 'model.safetensors', revision=revision, endpoint=endpoint))
    except Exception as e:
        why = next(iter(f'{e}'.strip().splitlines()), '')
        raise Refused(f'{name}: model.safetensors cannot be had ({type(e).__name__}: {why})') from None
