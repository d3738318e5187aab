"""Images per second of one core: packing JPEG files, and taking batches from a pack as training does. CPU time, so that
a busy machine may measure it:
`python -m tools.bench.reading [--n 512] [--rounds 5] [--batch 256] [--out results/reading.json]`."""
import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.cbook import get_sample_data
from PIL import Image

from sagan_nb.data import Stream, open_source
from sagan_nb.machinery.machine import machine_facts
from sagan_nb.machinery.packs import pack

SIZE, QUALITY, RES = (500, 375), 98, 128          # about as large as the files of ImageNet are on average: 108 kB


def photographs(folder, n):
    "Write n cuts, each from elsewhere, of the photograph that comes with Matplotlib; mirrored in turn, in two classes."
    with get_sample_data('grace_hopper.jpg') as f: whole = Image.open(f).convert('RGB')
    (w, h), (wide, high) = whole.size, (400, 300)
    for i in range(n):
        left, top = (i*37) % (w - wide), (i*53) % (h - high)
        cut = whole.crop((left, top, left + wide, top + high)).resize(SIZE, Image.BICUBIC)
        path = folder/'ab'[i % 2]/f'{i:04}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        if i % 3: cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        cut.save(path, quality=QUALITY)
    return folder


def cpu_seconds(work):
    "What a function costs, on all threads of this process, in the system too."
    began = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()): work()
    return time.process_time() - began


def take(source, batch, n):
    "As many batches as hold n images, each made where it is asked for: shuffled, mirrored, as floats in [-1, 1]."
    stream = Stream(source, batch, flip=True)
    stream.close()
    for _ in range(n // batch): next(stream)


def measure(n, rounds, batch):
    "Images per second of one core, in each round: packing, reading."
    found = dict(packing=[], reading=[])
    with tempfile.TemporaryDirectory() as folder:
        files, out = photographs(Path(folder)/'files', n), Path(folder)/'all.pack'
        bytes_each = sum(p.stat().st_size for p in files.rglob('*.jpg')) / n
        for _ in range(rounds + 1):                           # the first, which is slower, does not count
            found['packing'].append(n / cpu_seconds(lambda: pack(files, RES, out)))
            source = open_source(out)
            found['reading'].append(8*n / cpu_seconds(lambda: take(source, batch, 8*n)))
    return {k: v[1:] for k, v in found.items()}, bytes_each


def main():
    p = argparse.ArgumentParser(description=__doc__)
    for name, n in dict(n=512, rounds=5, batch=256).items(): p.add_argument(f'--{name}', type=int, default=n)
    p.add_argument('--step', type=float, default=.35, help='stated seconds of an update of that batch on one GPU')
    p.add_argument('--out', type=Path)
    o = p.parse_args()
    torch.set_num_threads(1)
    rounds, bytes_each = measure(o.n, o.rounds, o.batch)
    rate = {k: statistics.median(v) for k, v in rounds.items()}
    result = dict(files=f'{o.n} JPEG files of {SIZE[0]}x{SIZE[1]}', bytes_each=bytes_each, res=RES, batch=o.batch,
                  rounds=rounds, images_per_core_second=rate, stated_step=o.step, machine=machine_facts())
    for k, v in rate.items():
        print(f'{k}: {v:,.0f} images a second and core ({min(rounds[k]):,.0f} to {max(rounds[k]):,.0f})')
    print(f'{o.batch} images in {o.step} s need {o.batch / o.step / rate["reading"]:.2f} cores')
    if o.out: o.out.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__': main()
