"""Damage every kind of file that is read, and see that it is noticed:
`python -m tools.faults.damage --flips 1000 --out results/faults`.

Each is cut off at every hundredth of its length, and has single bits flipped that are chosen by chance. What may come
of it: a refusal in one sentence that names the file; a warning that names it, where it is made again or an earlier one
is used; or the same values as before, because the bit means nothing. Other values without a word are a fault where a
hash guards the file; pictures of other people carry none.
"""
import contextlib
import io
import random
import re
import shutil
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse
from PIL import Image

from sagan_nb.config import to_json
from sagan_nb.core import Refused
from sagan_nb.data import open_source
from sagan_nb.machinery.checkpoints import checkpoints_of, every_tensor, read_checkpoint
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.evaluate import run_scores, save_records
from sagan_nb.machinery.files import CacheWarning, read_cache, write_cache
from sagan_nb.machinery.jobs import Job, collect, write_result
from sagan_nb.machinery.packed import open_packed
from sagan_nb.machinery.packs import pack
from sagan_nb.machinery.publish import save_pretrained
from sagan_nb.machinery.runs import class_names, kept_samples, machines, read_log, settings_of

from .results import add_rows, tries_so_far
from .works import Place, pack_pictures, settings, small, timeless

OUTCOMES = 'refused', 'named', 'same', 'other'


@dataclass
class Kind:
    "A kind of file, and how a program reads it."
    path: Path
    read: callable                   # () -> JSON values, texts or numbers that say what was read
    guarded: bool = True             # by a hash, a checksum, or a copy
    whole: bool = True               # False: a file that grows; cut off, it reads as far as it goes
    named: str = ''                  # what a message may name instead of the file


def values(state): return [(name, tuple(v.shape), v.double().sum().item()) for name, v in every_tensor(state)]


def source_values(source): return source.fingerprint, source.classes, sorted(source.unreadable), source.found


def kept_values(path):
    kept = read_cache(path)
    return kept and (values(kept[0]), kept[1])


def pack_again(place, folder, whole):
    "Go on with an unfinished pack whose files are damaged, on a copy."
    copy = folder/'again'
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    with small(place): pack_pictures(place, copy)
    return source_values(open_packed(copy/'pictures.pack', whole=True))


def half_pack(place, folder):
    "A pack that was stopped before its end."
    from .layer import Layer
    try:
        with small(place), Layer(folder, at=20, fault=5).on(): pack_pictures(place, folder)
    except OSError: return folder
    raise RuntimeError('the pack was not stopped')


def of_runs(place, folder):
    "What lies in a run folder, each with its reader."
    run = folder/'run'
    shutil.copytree(place.folder/'finished', run)
    save_records(run/'metrics.json', [dict(metric='score', value=1.5, seed=0),
                                      dict(metric='distance', value=2.5, seed=0, real=.5)])
    newest = checkpoints_of(run)[-1]
    def logged(): return [timeless(o) for o in read_log(run/'log.jsonl')]
    def drawn(): return {t: int(x.long().sum()) for t, x in kept_samples(run).items()}
    return {'checkpoint': Kind(newest, lambda: values(read_checkpoint(newest))),
            'checkpoint, opened by its run': Kind(newest, lambda: open_run(run).step),
            'settings': Kind(run/'config.json', lambda: to_json(settings_of(run))),
            'classes of a run': Kind(run/'data.json', lambda: class_names(run, 4)),
            'machine of a run': Kind(run/'env.json', lambda: machines(run)),
            'scores of a run': Kind(run/'metrics.json', lambda: run_scores(run)),
            'log': Kind(run/'log.jsonl', logged, whole=False),
            'grid of samples': Kind(run/'samples'/'step_0000006.png', drawn)}


def of_weights(place, folder):
    "Networks, ours and of others."
    ours, npz, pth = (folder/f'weights.{o}' for o in ('safetensors', 'npz', 'pth'))
    save_pretrained(place.folder/'finished', ours)
    state = {k: v.contiguous() for k, v in open_run(place.folder/'finished').D.state_dict().items()}
    np.savez(npz, **{k: v.numpy() for k, v in state.items()})
    torch.save(state, pth)
    def look(path, part): return lambda: values(getattr(open_run(path, part=part), part).state_dict())
    return {'published weights': Kind(ours, look(ours, 'G')),
            'weights of others, .npz': Kind(npz, look(npz, 'D')),
            'weights of others, .pth': Kind(pth, look(pth, 'D'))}


def of_data(place, folder):
    "Pictures, packs and caches."
    zipped, cached, kept = folder/'pictures.zip', folder/'cache.safetensors', folder/'pictures.pack'
    with zipfile.ZipFile(zipped, 'w', zipfile.ZIP_DEFLATED) as z:
        for p in sorted((place.folder/'pictures').rglob('*.png')): z.write(p, p.relative_to(place.folder/'pictures'))
    write_cache(cached, dict(features=torch.randn(20, 8), logits=torch.randn(20, 4)), dict(task='classes'))
    with small(place): pack(place.folder/'pictures', 32, kept)
    def opened(): return source_values(open_packed(kept, whole=True))
    half = half_pack(place, folder/'half')
    def again(): return pack_again(place, folder, half)
    one = shutil.copytree(place.folder/'pictures', folder/'one')
    jpeg = one/'a'/'zz.jpg'
    Image.open(one/'b'/'00.png').save(jpeg, quality=90)
    def read(): return source_values(open_source(one, 32, max_bad=.5))
    return {'zip of pictures': Kind(zipped, lambda: source_values(open_source(zipped, 32, max_bad=1)), guarded=False),
            'picture, PNG': Kind(one/'a'/'03.png', read, guarded=False),
            'picture, JPEG': Kind(jpeg, read, guarded=False),
            'features that are kept': Kind(cached, lambda: kept_values(cached)),
            **{f'pack, {o}': Kind(kept/o, opened, named=str(kept)) for o in ('images.npy', 'labels.npy', 'pack.json')},
            'unfinished pack, its log': Kind(half/'pictures.pack.part.log', again, whole=False),
            'unfinished pack, images.npy': Kind(half/'pictures.pack.part'/'images.npy', again, whole=False)}


def of_tables(place, folder):
    "Results of a table."
    out, run = folder/'table', place.folder/'finished'
    job = Job(replace(settings(place.source), preset='t1_attn_16'))
    records = [dict(metric='score', value=1.5, splits=1, features='pixels')]
    with small(place): write_result(job, run, records, 'finished', out)
    path = next(out.glob('*.json'))
    return {'result of a table': Kind(path, lambda: timeless(collect(out)))}


def attempt(kind, good):
    "What comes of reading it: an outcome, or what is wrong."
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as said, contextlib.redirect_stdout(printed):
        warnings.simplefilter('always')
        try: found = kind.read()
        except Refused as e:
            text = str(e)
            wrong = '\n' in text or not any(o and o in text for o in (kind.path.name, kind.named))
            return f'does not name the file: {text}' if wrong else 'refused'
        except Exception as e: return f'a traceback: {type(e).__name__}: {e}'
    if found == good: return 'same'
    words = printed.getvalue() + ' '.join(str(o.message) for o in said if o.category is CacheWarning)
    if kind.path.name in words or 'cannot be read and are left out' in words: return 'named'
    if not kind.whole and isinstance(found, list) and found == good[:len(found)]: return 'same'
    return 'silently other' if kind.guarded else 'other'


def cut_off(content):
    "Where each cut is, and what it leaves."
    for n in sorted({len(content)*i//100 for i in range(100)}): yield f'at {n} of {len(content)}', content[:n]


def bits_flipped(content, bits):
    "Which bit it is, and the content with it flipped."
    for b in bits:
        byte, bit = divmod(b, 8)
        yield f'bit {bit} of byte {byte}', content[:byte] + bytes([content[byte] ^ 1 << bit]) + content[byte + 1:]


def damage(name, kind, rng, flips):
    "Cut it off at every hundredth, flip bits, and count what comes of it: two rows of the result."
    content = kind.path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter('error', CacheWarning)
        good = kind.read()
    bits = [rng.randrange(8*len(content)) for _ in range(flips)]
    ways = (('cut off', 'at every hundredth', cut_off(content)),
            ('bit flipped', 'single bits chosen by chance', bits_flipped(content, bits)))
    rows, least = [], len(content.rstrip())
    must_show = kind.whole and kind.guarded                # where it is cut off
    for way, how, attempts in ways:
        counts, wrong = Counter(), []
        for where, damaged in attempts:
            kind.path.write_bytes(damaged)
            outcome = attempt(kind, good)
            short = way == 'cut off' and len(damaged) < least
            if outcome == 'same' and short and must_show: outcome = 'cut off, and read as if it were whole'
            counts[outcome] += 1
            if outcome not in OUTCOMES: wrong.append(f'{way} {where}: {outcome}')
        known = {o: n for o, n in sorted(counts.items()) if o in OUTCOMES}
        rows.append(dict(fault=f'{name}: {way}', how=how, guarded=kind.guarded, tries=counts.total(), outcomes=known,
                         wrong=wrong))
    kind.path.write_bytes(content)
    return rows


def kinds(folder):
    "Every kind of file, made at the smallest size."
    place = Place(folder/'place')
    with small(place): place.prepare()
    return of_runs(place, folder) | of_weights(place, folder) | of_data(place, folder) | of_tables(place, folder)


@call_parse
def main(
    flips:int=60,             # of each kind
    seed:int=None,               # of the bits (default: as many as were tried before)
    out:str=None,             # folder for damage.json, to which is added; nothing is written without
    only:str=None,            # kinds whose name begins so
):
    "Damage, read, restore. Ends with 1 where damage went unnoticed, or ended in a traceback."
    rows, began = [], time.time()
    rng = random.Random(tries_so_far(Path(out)/'damage.json') if out and seed is None else seed)
    def said(o): return f'{o["fault"]}: {o["tries"]} tries, {o["outcomes"]}'
    with tempfile.TemporaryDirectory() as d:
        for name, kind in kinds(Path(d)).items():
            if only and not name.startswith(only): continue
            own = damage(name, kind, rng, flips)
            for o in own: print(said(o), *(re.sub(d, '...', w)[:300] for w in o['wrong'][:5]), sep='\n  ', flush=True)
            rows += own
    print(f'{sum(o["tries"] for o in rows)} damaged files in {time.time() - began:.0f} s')
    if out: add_rows(Path(out)/'damage.json', rows, time.time() - began)
    raise SystemExit(any(o['wrong'] for o in rows))


if __name__ == '__main__': main()
