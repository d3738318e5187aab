"""Damage every kind of file that is read, and see that it is noticed: `python -m tools.faults.damage --flips 1000 --out results/faults`.

Each is cut off at every hundredth of its length, and has single bits flipped that are chosen by chance. What may come of it: a refusal in one sentence that names the file;
a warning that names it, where it is made again or an earlier one is used; or the same values as before, because the bit means nothing. Other values without a word are a
fault where a hash guards the file; pictures of other people carry none.
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
    save_records(run/'metrics.json', [dict(metric='score', value=1.5, seed=0), dict(metric='distance', value=2.5, seed=0, real=.5)])
    newest, logged = checkpoints_of(run)[-1], lambda: [timeless(o) for o in read_log(run/'log.jsonl')]
    return {'checkpoint': Kind(newest, lambda: values(read_checkpoint(newest))),
            'checkpoint, opened by its run': Kind(newest, lambda: open_run(run).step),
            'settings': Kind(run/'config.json', lambda: to_json(settings_of(run))),
            'classes of a run': Kind(run/'data.json', lambda: class_names(run, 4)),
            'machine of a run': Kind(run/'env.json', lambda: machines(run)),
            'scores of a run': Kind(run/'metrics.json', lambda: run_scores(run)),
            'log': Kind(run/'log.jsonl', logged, whole=False),
            'grid of samples': Kind(run/'samples'/'step_0000006.png', lambda: {t: int(x.long().sum()) for t, x in kept_samples(run).items()})}


def of_weights(place, folder):
    "Networks, ours and of others."
    ours, npz, pth = (folder/f'weights.{o}' for o in ('safetensors', 'npz', 'pth'))
    save_pretrained(place.folder/'finished', ours)
    state = {k: v.contiguous() for k, v in open_run(place.folder/'finished').D.state_dict().items()}
    np.savez(npz, **{k: v.numpy() for k, v in state.items()})
    torch.save(state, pth)
    def look(path, part): return lambda: values(getattr(open_run(path, part=part), part).state_dict())
    return {'published weights': Kind(ours, look(ours, 'G')), 'weights of others, .npz': Kind(npz, look(npz, 'D')), 'weights of others, .pth': Kind(pth, look(pth, 'D'))}


def of_data(place, folder):
    "Pictures, packs and caches."
    zipped, cached, kept = folder/'pictures.zip', folder/'cache.safetensors', folder/'pictures.pack'
    with zipfile.ZipFile(zipped, 'w', zipfile.ZIP_DEFLATED) as z:
        for p in sorted((place.folder/'pictures').rglob('*.png')): z.write(p, p.relative_to(place.folder/'pictures'))
    write_cache(cached, dict(features=torch.randn(20, 8), logits=torch.randn(20, 4)), dict(task='classes'))
    with small(place): pack(place.folder/'pictures', 32, kept)
    def opened(): return source_values(open_packed(kept, whole=True))
    half = half_pack(place, folder/'half')
    one = shutil.copytree(place.folder/'pictures', folder/'one')
    jpeg = one/'a'/'zz.jpg'
    Image.open(one/'b'/'00.png').save(jpeg, quality=90)
    def read(): return source_values(open_source(one, 32, max_bad=.5))
    return {'zip of pictures': Kind(zipped, lambda: source_values(open_source(zipped, 32, max_bad=1)), guarded=False),
            'picture, PNG': Kind(one/'a'/'03.png', read, guarded=False), 'picture, JPEG': Kind(jpeg, read, guarded=False),
            'features that are kept': Kind(cached, lambda: kept_values(cached)),
            **{f'pack, {name}': Kind(kept/name, opened, named=str(kept)) for name in ('images.npy', 'labels.npy', 'pack.json')},
            'unfinished pack, its log': Kind(half/'pictures.pack.part.log', lambda: pack_again(place, folder, half), whole=False),
            'unfinished pack, images.npy': Kind(half/'pictures.pack.part'/'images.npy', lambda: pack_again(place, folder, half), whole=False)}


def of_tables(place, folder):
    "Results of a table."
    out, run = folder/'table', place.folder/'finished'
    with small(place): write_result(Job(replace(settings(place.source), preset='t1_attn_16')), run, [dict(metric='score', value=1.5, splits=1, features='pixels')], 'finished', out)
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


def damage(name, kind, rng, flips):
    "Cut it off at every hundredth, flip bits, and count what comes of it: a row of the result."
    content, counts, wrong = kind.path.read_bytes(), Counter(), []
    with warnings.catch_warnings():
        warnings.simplefilter('error', CacheWarning)
        good = kind.read()
    bits = [rng.randrange(8*len(content)) for _ in range(flips)]
    cut = [('cut off', f'at {n} of {len(content)}', content[:n]) for n in sorted({len(content)*i//100 for i in range(100)})]
    flipped = [('bit flipped', f'bit {b % 8} of byte {b // 8}', content[:b // 8] + bytes([content[b // 8] ^ 1 << b % 8]) + content[b // 8 + 1:]) for b in bits]
    for way, where, damaged in (*cut, *flipped):
        kind.path.write_bytes(damaged)
        outcome = attempt(kind, good)
        if outcome == 'same' and way == 'cut off' and kind.whole and kind.guarded and len(damaged) < len(content.rstrip()): outcome = 'cut off, and read as if it were whole'
        counts[way, outcome] += 1
        if outcome not in OUTCOMES: wrong.append(f'{way} {where}: {outcome}')
    kind.path.write_bytes(content)
    return [dict(fault=f'{name}: {way}', how='at every hundredth' if way == 'cut off' else 'single bits chosen by chance', guarded=kind.guarded,
                 tries=sum(n for (w, _), n in counts.items() if w == way), outcomes={o: n for (w, o), n in sorted(counts.items()) if w == way and o in OUTCOMES},
                 wrong=[o for o in wrong if o.startswith(way)]) for way in ('cut off', 'bit flipped')]


def kinds(folder):
    "Every kind of file, made at the smallest size."
    place = Place(folder/'place')
    with small(place): place.prepare()
    return {name: kind for make in (of_runs, of_weights, of_data, of_tables) for name, kind in make(place, folder).items()}


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
    with tempfile.TemporaryDirectory() as d:
        for name, kind in kinds(Path(d)).items():
            if only and not name.startswith(only): continue
            own = damage(name, kind, rng, flips)
            for o in own: print(f'{o["fault"]}: {o["tries"]} tries, {o["outcomes"]}' + ''.join(f'\n  {re.sub(d, "...", w)[:300]}' for w in o['wrong'][:5]), flush=True)
            rows += own
    print(f'{sum(o["tries"] for o in rows)} damaged files in {time.time() - began:.0f} s')
    if out: add_rows(Path(out)/'damage.json', rows, time.time() - began)
    raise SystemExit(any(o['wrong'] for o in rows))


if __name__ == '__main__': main()
