"Serves chapter 16: publishing a generator on the Hugging Face hub, with a card that says how it was made."
import os
import tempfile
from pathlib import Path

from ..attention_maps import show_attention
from ..core import Refused, save_fig
from .door import Model, open_run
from .drawing import maps_of_run
from .evaluate import one_line, run_scores
from .files import read_json
from .hub import NO_HUB, repo_of
from .options import folder_of
from .publish import save_pretrained
from .queries import find_queries
from .runs import BEGAN

FRONT = '---\nlibrary_name: sagan_nb\ntags: [gan, sagan, self-attention]\n{licence}---\n'


def facts_of(
    run,                          # what is published
    model:Model,                  # the same, opened
)->list:                          # lines of Markdown
    "Write down data, classes and scores, with their protocol, as far as they are known."
    known = {k: v for k, v in model.about.items() if k in ('preset', 'step', 'batch_norm', 'checkpoint_sha256')}
    data, began = str(model.cfg.data), folder_of(run)/BEGAN
    is_path = Path(data).is_absolute() or os.sep in data and not data.startswith('hf:')
    pictures = Path(data).name if is_path else data                # no path of yours
    classes = f'{len(model.classes) or "no"} classes'
    lines = ['## How it was made', '', f'- pictures: {pictures or "not recorded"}, {classes}']
    there = Path(run).exists() and began.exists()
    init = read_json(began, 'it says what the run began with').get('init') if there else ''
    if init: lines.append(f'- began with the weights of {Path(init).name}, whose licence holds, too')
    lines += [f'- {k}: {v}' for k, v in known.items()]
    records = run_scores(folder_of(run)) if Path(run).is_dir() else []
    return [*lines, '', '## Scores', '', one_line(records) if records else 'None is recorded.', '']


def attention_figure(
    run,                          # what is published
    path:Path,                    # picture to write
):
    "Draw what two pixels of two pictures attend to."
    maps, names = maps_of_run(run, 'G', 2, None, None, 0, 'cpu')
    layer = next(reversed(maps.layers.values()))
    save_fig(show_attention(maps, [find_queries(layer, i, 'auto', 2) for i in range(2)], names=names), path)


def fill_repo(
    run,                          # anything `open_run` takes
    folder:Path,                  # to fill
    licence:str='',               # its SPDX name; '' leaves it out
):
    "Write weights, card and figure."
    model = open_run(run)
    save_pretrained(run, folder)
    card = folder/'README.md'
    more = facts_of(run, model)
    try: attention_figure(run, folder/'attention.png')
    except Refused: pass                                         # it has no attention to draw
    else: more += ['## What it attends to', '', '![attention](attention.png)', '']
    front = FRONT.format(licence=f'license: {licence}\n' if licence else '')
    card.write_text(front + card.read_text(encoding='utf-8') + '\n'.join(['', *more]), encoding='utf-8')


def push(
    run,                          # anything `open_run` takes
    repo:str,                     # USER/REPO
    licence:str='',               # its SPDX name
)->str:                           # where it is
    "Publish a generator on the hub, which asks for a login. Raises Refused without the package, and where it fails."
    repo = repo_of(f'hf:{repo.removeprefix("hf:")}')[0]
    try: from huggingface_hub import HfApi
    except ImportError: raise Refused(NO_HUB) from None
    with tempfile.TemporaryDirectory() as d:
        fill_repo(run, Path(d), licence)
        api = HfApi(endpoint=os.environ.get('HF_ENDPOINT'))
        try:
            api.create_repo(repo, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=d, commit_message='sagan_export'))
        except Exception as e:
            why = f'{e}'.strip().splitlines()
            raise Refused(f'{repo}: not published ({type(e).__name__}: {why[0] if why else ""})') from None
