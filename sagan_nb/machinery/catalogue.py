"Serves chapter 13: public weights of SAGANs by name: address, hash, licence, published score, as their authors say."
from dataclasses import dataclass
from pathlib import Path

from ..core import Refused, choose
from .files import cache_folder, fetch, file_sha256


@dataclass(frozen=True)
class Public:
    "Weights that somebody published."
    what: str                     # whose, trained on what
    url: str                      # '': none known
    sha256: str = ''              # the whole hash or how it begins; '': not published
    licence: str = ''             # as stated for the code; '': not stated
    score: str = ''               # Inception score and FID as published
    by: str = ''                  # the protocol of that score
    read_at: str = ''             # where all this was read
    bgr: bool = False             # pictures have blue first
    inplace: bool = None          # shortcuts of D see a rectified input; None: as the tensors say
    note: str = ''                # what else a user must know


MMGEN_FILES = 'https://download.openmmlab.com/mmgen/sagan/'
MMGEN_PAGE = 'https://github.com/open-mmlab/mmgeneration/blob/master/configs/sagan/README.md'
NNABLA_PAGE = 'https://github.com/sony/nnabla-examples/tree/master/image-generation/sagan'


def of_mmgen(
    file:str,                     # in MMGEN_FILES; its name ends in the first eight digits of its hash
    what:str,                     # trained on what, chosen by what
    score:str,                    # as published
    **more,                       # other fields
)->Public:
    "An entry of mmgeneration's table."
    known = dict(sha256=file[-12:-4], licence='Apache-2.0 (code)', by='mmgen', read_at=MMGEN_PAGE,
                 bgr=True)                                           # CIFAR, too
    return Public(what, MMGEN_FILES + file, **dict(known, score=score, **more))


CATALOGUE = {
    'mmgen:imagenet': of_mmgen(
        'sagan_128_woReLUinplace_noaug_bigGAN_imagenet1k_b32x8_Glr1e-4_Dlr-4e-4_ndisc1_20210818_210232-3f5686af.pth',
        'ImageNet 128, BigGAN schedule with averaged weights', 'IS 69.54, FID 12.83'),
    'mmgen:imagenet-is': of_mmgen(
        'sagan_imagenet1k_128_Glr1e-4_Dlr4e-4_ndisc1_b32x4_woReLUinplace_is-iter980000_20210730_163140-cfbebfc6.pth',
        'ImageNet 128, best IS', 'IS 31.59, FID 36.77'),
    'mmgen:imagenet-fid': of_mmgen(
        'sagan_imagenet1k_128_Glr1e-4_Dlr4e-4_ndisc1_b32x4_woReLUinplace_fid-iter950000_20210730_163431-d7916963.pth',
        'ImageNet 128, best FID', 'IS 28.49, FID 34.78'),
    'mmgen:cifar10-is': of_mmgen(
        'sagan_cifar10_32_lr2e-4_ndisc5_b64x1_woReUinplace_is-iter400000_20210730_125743-4008a9ca.pth',
        'CIFAR-10, best IS', 'IS 9.32, FID 10.50'),
    'mmgen:cifar10': of_mmgen(
        'sagan_cifar10_32_lr2e-4_ndisc5_b64x1_woReUinplace_fid-iter480000_20210730_125449-d50568a4.pth',
        'CIFAR-10, best FID', 'IS 9.32, FID 9.43'),
    'mmgen:cifar10-inplace': of_mmgen(
        'sagan_cifar10_32_lr2e-4_ndisc5_b64x1_wReLUinplace_fid-iter460000_20210730_125155-cbefb354.pth',
        'CIFAR-10, in-place ReLU, best FID', 'IS 9.21, FID 10.78', inplace=True),
    'studiogan:imagenet': of_mmgen(
        'sagan_128_imagenet1k_convert-studio-rgb_20210730_153357-eddb0d1d.pth',
        "StudioGAN's ImageNet 128, under mmgeneration's names", 'IS 29.85, FID 34.73 (by mmgen: 27.37, 40.12)',
        by='studiogan', bgr=False, inplace=True),
    'studiogan:cifar10': of_mmgen(
        'sagan_32_cifar10_convert-studio-rgb_20210730_153321-080da7e2.pth',
        "StudioGAN's CIFAR-10, under mmgeneration's names", 'IS 8.68, FID 14.01 (by mmgen: 9.12, 10.20)',
        by='studiogan', bgr=False, inplace=True),
    'nnabla:imagenet': Public(
        'ImageNet 128, a million steps on four GPUs',
        'https://nnabla.org/pretrained-models/nnabla-examples/GANs/sagan/params_999999.h5', licence='Apache-2.0 (code)',
        score='IS about 72, FID about 9.5, as its README says', by='its own Inception, 10,000 images',
        read_at=NNABLA_PAGE, note='no hash is published; needs h5py'),
    'biggan:imagenet': Public("BigGAN-PyTorch's SAGAN settings", '', note='no public weights are known'),
    'official:imagenet': Public('the released code', '', note='no public weights are known'),
    'ylg:imagenet': Public(
        'Your Local GAN, ImageNet 128, a million steps', '', score='FID 15.94', by='its authors, in its abstract',
        note='a folder to download by hand from https://drive.google.com/open?id=1Nikmw2WLcSnN_Yv0FbvwrZcjgu-HPkJH; '
             'then its checkpoint opens by its path'),
}


def is_weights_name(
    what,                         # what a user named
)->bool:
    "Does this name public weights?"
    if not isinstance(what, (str, Path)) or ':' not in str(what) or Path(what).exists(): return False
    return str(what).partition(':')[0] in {k.partition(':')[0] for k in CATALOGUE}


def place_of(
    name:str,                     # a key of CATALOGUE
)->Path:
    "Where a file of weights is kept: a folder of the cache."
    return cache_folder()/'weights'/CATALOGUE[name].url.rsplit('/', 1)[-1]


def weights_of(
    name:str,                     # a key of CATALOGUE
)->Path:                          # a file with the published hash
    "Find or download public weights. Raises Refused where there are none, or no network, or the hash differs."
    p = CATALOGUE[choose(str(name), CATALOGUE, 'set of weights')]
    if not p.url: raise Refused(f'{name}: {p.note}')
    want = place_of(name)
    known = f'sha256 {p.sha256}...' if p.sha256 else 'no hash is published'
    fetch(want, p.url, p.sha256, name, f'get {p.url} ({known}) and put it at {want}')
    if not file_sha256(want).startswith(p.sha256):
        raise Refused(f'{want} is not the published file ({known}): remove it, and it is downloaded again')
    return want
