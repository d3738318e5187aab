"Pictures from files, with the faults that real files have; packing; the stream across ranks and restarts."
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from sagan_nb import data
from sagan_nb.core import Refused, from_uint8
from sagan_nb.data import Pairs, Stream, Toy, Twins, diversity, long_range, open_source
from sagan_nb.machinery.sources import describe
from sagan_nb.machinery import packed, packs, pictures
from sagan_nb.machinery.listing import list_pictures
from sagan_nb.machinery.packs import pack

SHARED = Path(__file__).resolve().parents[2]/'shared'/'data'


def real(name):
    if not (SHARED/name).exists(): pytest.skip(f'shared/data/{name} is not on this machine')
    return str(SHARED/name)


def noise(h=40, w=40, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, channels), dtype=np.uint8).squeeze()


@pytest.fixture
def tree(tmp_path):
    "Three classes of 4, 5 and 6 pictures, of several formats and shapes."
    seed = 0
    for name, n in (('ant', 4), ('bee', 5), ('cat', 6)):
        (tmp_path/'tree'/name).mkdir(parents=True)
        for i in range(n):
            seed += 1
            Image.fromarray(noise(40 + seed, 60 - seed, seed=seed)).save(tmp_path/'tree'/name/f'{i}.{("png", "JPEG", "bmp")[i % 3]}')
    return tmp_path/'tree'


def zipped(folder, path, prefix=''):
    with zipfile.ZipFile(path, 'w') as z:
        for p in sorted(folder.rglob('*')): z.write(p, prefix + p.relative_to(folder).as_posix())
    return path


def one_line(e): return str(e.value) and '\n' not in str(e.value)


def refused(match, *args, **kw):
    with pytest.raises(Refused, match=match) as e: open_source(*args, **kw)
    assert one_line(e)


def same(a, b):
    every = torch.arange(len(a))
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a.batch(every), b.batch(every)))


# layouts

def test_folder(tree):
    s = open_source(tree, 32)
    assert (len(s), s.res, s.classes, s.counts) == (15, 32, ['ant', 'bee', 'cat'], [4, 5, 6])
    x, y = s.batch([14, 0, 4])
    assert x.dtype == torch.uint8 and x.shape == (3, 3, 32, 32) and y.tolist() == [2, 0, 1] and y.dtype == torch.int64
    assert not s.unreadable and '15 pictures of 32x32, 3 classes' in describe(s) and 'bee' in describe(s)


def test_zip_equals_folder_and_wrapping_is_skipped(tree, tmp_path):
    s = open_source(tree, 32)
    for prefix in ('', 'train/', 'a/b/train/'):
        z = open_source(zipped(tree, tmp_path/'z.zip', prefix), 32)
        assert same(s, z) and z.classes == s.classes and z.fingerprint == s.fingerprint
    assert open_source(tree, 24).fingerprint != s.fingerprint
    (tree/'ant').rename(tree/'eel')
    assert open_source(tree, 32).fingerprint != s.fingerprint


def test_folder_inside_a_zip_is_named(tree, tmp_path):
    with zipfile.ZipFile(tmp_path/'z.zip', 'w') as z:
        for p in tree.rglob('*.*'):
            for split in ('train', 'val'): z.write(p, f'data/{split}/{p.relative_to(tree)}')
    refused(r'z\.zip:data/train', tmp_path/'z.zip', 32)
    for spec in ('z.zip:data/train', 'z.zip:data/val/', 'z.zip/data/val'): assert same(open_source(f'{tmp_path}/{spec}', 32), open_source(tree, 32))
    refused('holds no folder valid; it holds data', f'{tmp_path}/z.zip:valid', 32)
    os.makedirs(tmp_path/'two'/'train')
    (tree/'ant').rename(tmp_path/'two'/'train'/'ant')
    tree.rename(tmp_path/'two'/'val')
    refused('/two/train', tmp_path/'two', 32)


def test_hidden_and_other_files_do_not_count(tree, tmp_path):
    for name in ('readme.txt', 'ant/notes.txt', 'ant/._0.png', '.hidden/x.png', '__MACOSX/ant/._0.png'):
        (tree/name).parent.mkdir(exist_ok=True, parents=True)
        (tree/name).write_text('x')
    assert open_source(tree, 32).counts == [4, 5, 6] == open_source(zipped(tree, tmp_path/'z.zip'), 32).counts


def test_links_are_followed_once(tree, tmp_path):
    try: (tree/'dog').symlink_to(tree/'cat', target_is_directory=True)
    except OSError: pytest.skip('this system makes no symbolic links')
    (tree/'ant'/'round').symlink_to(tree, target_is_directory=True)
    found = open_source(tree, 16, unlabelled=True)
    assert len(found) == 15 and found.found['left_out'] == {'folders that are there already, by a link': 2}
    refused('without a picture in .*: dog', tree, 16)            # the link, whatever the order on the disk


def test_parts_of_a_data_set_are_no_classes(tree, tmp_path, capsys):
    "Pictures of train and test side by side, and StyleGAN's folders of a thousand each."
    both = tmp_path/'both'
    both.mkdir()
    (tree/'ant').rename(both/'train'), (tree/'bee').rename(both/'test')
    refused('holds parts of a data set .test, train., not classes: name one of them, such as .*/test', both, 16)
    assert len(open_source(both, 16, unlabelled=True)) == 9 and 'takes all of test, train together' in capsys.readouterr().out
    assert len(open_source(both/'train', 16, unlabelled=True)) == 4 and 'together' not in capsys.readouterr().out
    (tmp_path/'gan'/'00000').mkdir(parents=True), (tmp_path/'gan'/'00001').mkdir()
    for i in (0, 1): Image.fromarray(noise()).save(tmp_path/'gan'/f'0000{i}'/f'img{i}.png')
    (tmp_path/'gan'/'dataset.json').write_text('{}')
    refused('holds dataset.json, as StyleGAN writes it: its folders are parts, not classes', tmp_path/'gan', 16)
    assert len(open_source(tmp_path/'gan', 16, unlabelled=True)) == 2


def test_names_in_either_unicode_form_are_one_data_set(tree, tmp_path):
    "macOS takes accents apart: the class would sort elsewhere."
    for name, form in (('composed', 'NFC'), ('apart', 'NFD')):
        shutil.copytree(tree, tmp_path/name)
        (tmp_path/name/'ant').rename(tmp_path/name/unicodedata.normalize(form, 'école'))
    a, b = (open_source(tmp_path/name, 16) for name in ('composed', 'apart'))
    assert a.classes == b.classes == sorted(a.classes) and a.fingerprint == b.fingerprint and same(a, b)


def test_of_a_name_twice_in_a_zip_the_last_counts(tree, tmp_path):
    z = zipped(tree, tmp_path/'z.zip')
    name = sorted(p for p in tree.rglob('*.*') if p.parent.name == 'ant')[0]
    Image.fromarray(noise(seed=77)).save(name, format=Image.open(name).format)
    with zipfile.ZipFile(z, 'a') as f, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        f.write(name, name.relative_to(tree).as_posix())
    found = open_source(z, 16)
    assert same(found, open_source(tree, 16)) and sum(found.found['left_out'].values()) == 1


def test_unlabelled(tree, tmp_path):
    (tree/'deep'/'er').mkdir(parents=True)
    Image.fromarray(noise()).save(tree/'deep'/'er'/'x.png')
    Image.fromarray(noise()).save(tree/'y.png')
    s = open_source(tree, 32, unlabelled=True)
    assert len(s) == 17 and s.classes == [] and s.counts == [] and not s.batch(range(17))[1].any() and 'no labels' in describe(s)
    flat = Toy(16, n=40)
    for src in (open_source('toy', 16, unlabelled=True), open_source(zipped(tree, tmp_path/'z.zip'), 32, unlabelled=True)):
        assert src.classes == [] and not src.batch([1, 2, 3])[1].any()
    assert torch.equal(open_source('toy', 16, unlabelled=True).batch(range(9))[0], flat.batch(range(9))[0])


# bad input, one line each

def test_refusals(tree, tmp_path):
    refused('there is no file or folder', tmp_path/'nowhere', 32)
    refused('there is no file or folder', f'{tmp_path}/no.zip:train', 32)
    refused(r'--set res=', tree)
    refused('pixels per side', tree, 0)
    (tmp_path/'a.txt').write_text('text')
    refused('neither a folder, nor a .zip', tmp_path/'a.txt', 32)
    (tmp_path/'empty').mkdir()
    refused('no pictures in .*it is empty', tmp_path/'empty', 32)
    (tmp_path/'empty'/'a.txt').write_text('text')
    refused(r'no pictures in .*it holds a\.txt', tmp_path/'empty', 32)
    (tree/'dog').mkdir()
    refused('without a picture.*dog', tree, 32)
    refused('without a picture.*dog', zipped(tree, tmp_path/'z.zip', 'train/'), 32)
    (tree/'dog').rmdir()
    refused('has 3 classes, but 4', tree, 32, n_classes=4)
    refused('outside of class folders', tree/'ant', 32)
    Image.fromarray(noise()).save(tree/'x.png')
    refused(r'1 pictures lie outside of class folders \(x\.png\).*--unlabelled', tree, 32)
    (tree/'x.png').unlink()
    (tree/'ant'/'sub').mkdir()
    Image.fromarray(noise()).save(tree/'ant'/'sub'/'x.png')
    refused('too deep', tree, 32)


def test_one_class_names_the_option(tree, tmp_path):
    (tmp_path/'one').mkdir()
    (tree/'cat').rename(tmp_path/'one'/'cat')
    refused(r'only one class \(cat\).*--unlabelled', tmp_path/'one', 32)
    assert len(open_source(tmp_path/'one', 32, unlabelled=True)) == 6


def test_bad_zips(tree, tmp_path):
    whole = zipped(tree, tmp_path/'z.zip').read_bytes()
    for name, content in (('text', b'no zip at all'), ('empty', b''), ('cut', whole[:-300]), ('half', whole[:len(whole)//2])):
        (tmp_path/f'{name}.zip').write_bytes(content)
        refused('no zip file, or a damaged one', tmp_path/f'{name}.zip', 32)
    with zipfile.ZipFile(tmp_path/'none.zip', 'w'): pass
    refused('no pictures', tmp_path/'none.zip', 32)
    at = zipfile.ZipFile(tmp_path/'z.zip').getinfo('cat/3.png').header_offset + 60
    (tmp_path/'flipped.zip').write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1:])          # one byte of one picture
    s = open_source(tmp_path/'flipped.zip', 32, max_bad=.1)
    assert list(s.unreadable) == ['cat/3.png'] and 'CRC' in s.unreadable['cat/3.png'] and s.counts == [4, 5, 5]


def test_toy_specs():
    assert open_source('toy').res == 32 and len(open_source('toy').classes) == 4
    assert len(open_source('toy:10', 16).classes) == 10 == len(open_source('toy', 16, n_classes=10).classes)
    refused('say toy, or toy:K', 'toy:many')
    refused('multiple of 8', 'toy', 20)
    refused('multiple of 8', 'toy', 0)
    refused('1 <= n_classes', 'toy:0')
    refused('asked for', 'toy:3', n_classes=4)


def test_twins_specs():
    twins = open_source('twins')
    assert (twins.spec, twins.res, twins.classes, twins.counts, twins.detail, twins.same) == ('twins', 32, ['twins'], [50_000], 2, True)
    for spec in ('twins:detail=3', 'twins:apart=1.2', 'twins:same=0', 'twins:detail=1,apart=0.8,same=0'):
        s = open_source(spec)
        assert s.spec == spec and open_source(s.spec).fingerprint == s.fingerprint != twins.fingerprint
    for usual in ('twins:', 'twins:detail=2,apart=0,same=1'):
        assert open_source(usual).spec == 'twins' and open_source(usual).fingerprint == twins.fingerprint
    assert open_source('twins', unlabelled=True).classes == [] and open_source('twins', n_classes=1).classes == ['twins']
    for spec in ('twins:3', 'twins:detail', 'twins:detail=2.5', 'twins:size=3', 'twins:same=2', 'twins:apart=far'): refused('say twins', spec)
    refused('detail of 1 to 4', 'twins:detail=5')
    for far in ('.5', '2', 'nan', '-1'): refused('0.8 to 1.6 apart', f'twins:apart={far}')
    refused('multiple of 8', 'twins', 20)
    refused('1 classes, but 4', 'twins', n_classes=4)


@pytest.mark.parametrize('options', [{}, dict(detail=3), dict(detail=1, apart=1.6), dict(same=False)], ids=str)
def test_twins_are_a_function_of_their_index(options):
    for res in (16, 32, 64):
        a, b, other = Twins(res, n=300, **options), Twins(res, n=300, **options), Twins(res, n=300, seed=1, **options)
        order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
        x, y = a.batch(order)
        assert x.shape == (300, 3, res, res) and x.dtype == torch.uint8 and not y.any() and torch.equal(a.labels[order], y)
        assert torch.equal(x, torch.cat([b.batch([i])[0] for i in order.tolist()])) and a.fingerprint == b.fingerprint
        assert a.fingerprint != other.fingerprint and not torch.equal(other.batch(order)[0], x)


def test_twins_lie_where_they_should():
    "Whole parts, each in its half; a given distance is kept; at 64 px they are the same scenes."
    for apart in (0, .8, 1., 1.3, 1.6):
        f = Twins(n=2000, apart=apart).factors
        assert (f['x'].abs() - .5).abs().max() <= .1401 and f['y'].abs().max() <= .5001 and (f['x'][:, 0] < 0).all() and (f['x'][:, 1] > 0).all()
        distance = torch.hypot(f['x'][:, 1] - f['x'][:, 0], f['y'][:, 1] - f['y'][:, 0])
        assert not apart or torch.allclose(distance, torch.tensor(float(apart)), atol=1e-5)
        assert f['y'].std() > .25
    small = torch.nn.functional.avg_pool2d(Twins(64).batch(range(50))[0].float(), 2)
    assert (small - Twins(32).batch(range(50))[0].float()).abs().mean() < 1


@pytest.mark.parametrize('res', [32, 64])
@pytest.mark.parametrize('k', [1, 2, 3, 4])
def test_twins_are_read_from_the_pixels(res, k):
    "In the middle of a reading grid nothing is lost but rounding; elsewhere little. The measure: all, nothing, and in between."
    twins = Twins(res, detail=k, n=400)
    twins.factors['x'], twins.factors['y'] = ((twins.factors[o] * 64).round() / 64 for o in 'xy')
    twins.factors['side'] = torch.tensor([.31, .33, .35])[torch.arange(800) % 3].view(400, 2)
    x = from_uint8(twins.batch(range(400))[0])
    found = data.read_twins(x, k)
    for name in 'xy': assert torch.equal(found[name], twins.factors[name])
    assert (found['code'] - twins.factors['code']).square().mean().sqrt() < .002
    whole, shuffled = twins.long_range(x, None)['mi'], torch.cat([x[..., :res//2], x.roll(1, 0)[..., res//2:]], -1)
    assert .97 < whole / (3*k*k * 3.7) < 1.03 and twins.long_range(shuffled, None)['mi'] < .015 * k*k


def test_agreement_is_the_formula():
    "Against the closed form, for Gaussian numbers of known correlation; opposite and constant numbers have no bits."
    rng = torch.Generator().manual_seed(0)
    a, e = torch.randn(2, 20_000, 5, generator=rng)
    for rho in (.3, .9):
        o = data.agreement(a, rho*a + (1 - rho**2)**.5 * e)
        assert abs(o['mi'] + 2.5 * np.log2(1 - rho**2)) < .1 and abs(o['correlation'] - rho) < .01 and abs(o['spread'] - 1) < .01
        assert abs(o['joint'] - o['mi']) < .1
    alike = a[:, :1].expand(-1, 5)
    once, often = data.agreement(a[:, :1], rho*a[:, :1] + e[:, :1]), data.agreement(alike, rho*alike + e[:, :1])
    assert abs(often['mi'] - 5*once['mi']) < 1e-9 and abs(often['joint'] - once['joint']) < .05      # one number, seen five times
    assert data.agreement(a[:200], e[:200])['joint'] < .2                                            # a few images, and nothing to find
    assert data.agreement(a, -a)['mi'] == 0 == data.agreement(a*0 + 3, a*0 + 3)['mi'] and data.agreement(a, -a)['correlation'] < -.99
    assert data.agreement(a/1000, a/1000)['mi'] < .01 < 20 < data.agreement(a, a)['mi']


# unreadable pictures

def test_unreadable_are_listed(tree, capsys):
    for i in range(300): Image.fromarray(noise(20, 20, seed=i)).save(tree/'ant'/f'n{i}.png')
    (tree/'ant'/'zero.jpg').write_bytes(b'')
    (tree/'bee'/'text.jpg').write_text('words')
    whole = (tree/'cat'/'1.JPEG').read_bytes()
    (tree/'cat'/'cut.JPEG').write_bytes(whole[:len(whole)//2])
    s = open_source(tree, 32)
    assert set(s.unreadable) == {'ant/zero.jpg', 'bee/text.jpg', 'cat/cut.JPEG'} and len(s) == 315 and s.counts == [304, 5, 6]
    said = capsys.readouterr().out
    assert '3 of 318 pictures cannot be read' in said and 'bee/text.jpg (not a picture)' in said and 'truncated' in said
    refused(r'3 or more of 318.*limit is 0\.1%.*ant/zero\.jpg \(empty file\)', tree, 32, max_bad=.001)
    (tree/'dog').mkdir()
    (tree/'dog'/'only.png').write_text('words')
    refused('no readable picture in class dog', tree, 32, max_bad=.02)


# odd pictures

def load(picture, tmp_path, ending='png', res=8, **save):
    picture.save(tmp_path/f'x.{ending}', **save)
    with Image.open(tmp_path/f'x.{ending}') as p: return pictures.square_rgb(p, res), p.mode


def test_modes(tmp_path):
    grey = noise(8, 8, 1)
    expected = np.stack([grey]*3)
    assert np.array_equal(load(Image.fromarray(grey), tmp_path)[0], expected)
    got, mode = load(Image.fromarray(np.stack([grey, noise(8, 8, 1, 1)], -1), 'LA'), tmp_path)
    assert mode == 'LA' and np.array_equal(got, expected)
    got, mode = load(Image.fromarray((grey.astype(np.uint16) * 257)), tmp_path)
    assert mode.startswith('I') and np.array_equal(got, expected)
    rgba = noise(8, 8, 4)
    got, mode = load(Image.fromarray(rgba), tmp_path)
    assert mode == 'RGBA' and np.array_equal(got, rgba[..., :3].transpose(2, 0, 1))                       # alpha is dropped
    one = Image.fromarray(grey).convert('1')
    assert np.array_equal(load(one, tmp_path)[0][0], np.asarray(one) * 255)
    with pytest.raises(ValueError, match='floats'): load(Image.fromarray(grey.astype(np.float32)), tmp_path, 'tif')


@pytest.mark.parametrize('transparent', [None, 3, b'\0\x80\xff'])
def test_palette(tmp_path, transparent, recwarn):
    p = Image.fromarray(noise(8, 8, 1) % 4, 'P')
    p.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    got, mode = load(p, tmp_path, **({} if transparent is None else dict(transparency=transparent)))
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]], np.uint8)
    assert mode == 'P' and np.array_equal(got, colours[np.asarray(p)].transpose(2, 0, 1))
    assert not [w for w in recwarn if 'Transparency' in str(w.message)]


def test_cmyk(tmp_path):
    got, mode = load(Image.new('CMYK', (8, 8), (0, 255, 255, 0)), tmp_path, 'jpg', quality=100, subsampling=0)
    assert mode == 'CMYK' and got[0].min() > 240 and got[1:].max() < 15                                   # red, not its opposite


def test_orientation(tmp_path):
    a = noise(8, 8)
    exif = Image.Exif()
    exif[0x0112] = 6                                                                                      # turn right to stand up
    assert np.array_equal(load(Image.fromarray(a), tmp_path, exif=exif)[0], np.rot90(a, -1).transpose(2, 0, 1))


@pytest.mark.parametrize('h,w', [(8, 20), (20, 8), (8, 13), (13, 8), (8, 8)])
def test_central_square(h, w):
    a = noise(h, w)
    top, left = (h - 8 + 1)//2, (w - 8 + 1)//2
    assert np.array_equal(pictures.square_rgb(Image.fromarray(a), 8), a[top:top + 8, left:left + 8].transpose(2, 0, 1))


def test_one_pixel_is_enlarged():
    assert np.array_equal(pictures.square_rgb(Image.new('RGB', (1, 1), (9, 8, 7)), 4)[:, 2, 3], [9, 8, 7])


# packing

def content(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}

def test_packed_equals_folder(tree, tmp_path):
    p, s = pack(tree, 32, tmp_path/'new'/'p.pack'), open_source(tree, 32)
    assert same(p, s) and (p.classes, p.counts, p.res, p.fingerprint) == (s.classes, s.counts, s.res, s.fingerprint)
    assert isinstance(p.pixels, np.memmap) and same(open_source(tmp_path/'new'/'p.pack'), s)
    assert [o for o in os.listdir(tmp_path/'new') if o[0] != '.'] == ['p.pack']
    refused('packed at 32 px, not 64', tmp_path/'new'/'p.pack', 64)
    refused('has 3 classes, but 7', tmp_path/'new'/'p.pack', n_classes=7)
    assert open_source(tmp_path/'new'/'p.pack', unlabelled=True).classes == []
    x, y = next(Stream(p, 5))
    assert x.shape == (5, 3, 32, 32) and y.dtype == torch.int64


def test_any_numpy_reads_a_pack(tree, tmp_path):
    (tree/'ant'/'bad.png').write_text('words')
    (tree/'ant'/'notes.txt').write_text('words')
    p = pack(tree, 32, tmp_path/'p.pack', max_bad=.2)
    images, labels = (np.load(tmp_path/'p.pack'/f'{name}.npy', mmap_mode='r') for name in ('images', 'labels'))
    about = json.loads((tmp_path/'p.pack'/'pack.json').read_text())
    x, y = p.batch(range(15))
    assert np.array_equal(images, x) and np.array_equal(labels, y) and labels.dtype == np.int64
    assert (about['n'], about['res'], about['classes'], about['counts']) == (15, 32, ['ant', 'bee', 'cat'], [4, 5, 6])
    assert about['unreadable'] == p.unreadable == {'ant/bad.png': 'not a picture'} and about['found'] == p.found == dict(left_out={'.txt': 1}, truncated=[], nearly_black=[])
    assert about['fingerprint'] == p.fingerprint and about['chunks'] == [dict(n=15, sha256=hashlib.sha256(images.tobytes()).hexdigest())]


def test_packed_toy(tmp_path, monkeypatch):
    monkeypatch.setitem(data.WORLDS, 'toy', lambda res, k: Toy(res, k, n=60))
    assert same(pack('toy:3', 16, tmp_path/'toy.pack'), Toy(16, 3, n=60))


@pytest.mark.parametrize('after', [0, 1, 3])
def test_interrupted_packing_goes_on(tree, tmp_path, monkeypatch, after):
    monkeypatch.setattr(pictures, 'CHUNK', 4)
    (tree/'bee'/'bad.png').write_text('words')
    pack(tree, 32, tmp_path/'whole.pack', max_bad=.2)
    decode, read = pictures.decode, []

    def stops(listing, name, *args):
        if len(set(read) | {name}) > 4*after: raise KeyboardInterrupt
        read.append(name)
        return decode(listing, name, *args)
    monkeypatch.setattr(pictures, 'decode', stops)
    with pytest.raises(KeyboardInterrupt): pack(tree, 32, tmp_path/'p.pack', max_bad=.2)
    assert not (tmp_path/'p.pack').exists() and (tmp_path/'p.pack.part').exists()
    with open(tmp_path/'p.pack.part'/'images.npy', 'ab') as f: f.write(b'half a picture')                 # torn ends of both files
    with open(tmp_path/'p.pack.part.log', 'a') as f: f.write('{"sha": "12')
    seen = []
    monkeypatch.setattr(pictures, 'decode', lambda listing, name, *args: seen.append(name) or decode(listing, name, *args))
    pack(tree, 32, tmp_path/'p.pack', max_bad=.2)
    assert len(seen) == 16 - 4*after and content(tmp_path/'p.pack') == content(tmp_path/'whole.pack')
    assert sorted(p.name for p in tmp_path.glob('p.pack*')) == ['p.pack']


def all_but_finished(monkeypatch, *args, **kw):
    "Pack, and stop before the pack gets its name."
    with monkeypatch.context() as m:
        m.setattr(packs, 'finish_pack', Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): pack(*args, **kw)


def test_pictures_mended_while_packing_was_interrupted_are_taken_in(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, 'CHUNK', 4)
    good = (tree/'bee'/'0.png').read_bytes()
    (tree/'bee'/'0.png').write_text('words')
    all_but_finished(monkeypatch, tree, 32, tmp_path/'p.pack', max_bad=.2)
    (tree/'bee'/'0.png').write_bytes(good)
    found = pack(tree, 32, tmp_path/'p.pack', max_bad=.2)
    assert len(found) == 15 and not found.unreadable and found.fingerprint == open_source(tree, 32).fingerprint


@pytest.mark.parametrize('ranks, threads', [(1, 6), (2, 3), (4, 1), (12, 1)])
def test_ranks_of_a_machine_share_its_cores(monkeypatch, ranks, threads):
    monkeypatch.setattr(pictures.os, 'sched_getaffinity', lambda pid: range(6), raising=False)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(ranks))
    assert pictures.threads_to_use() == threads


def test_lost_end_of_an_unfinished_pack(tree, tmp_path, monkeypatch):
    "The log promises more than the disk kept."
    monkeypatch.setattr(pictures, 'CHUNK', 4)
    pack(tree, 32, tmp_path/'whole.pack')
    all_but_finished(monkeypatch, tree, 32, tmp_path/'p.pack')
    os.truncate(tmp_path/'p.pack.part'/'images.npy', packed.HEAD + 9*3*32**2)
    pack(tree, 32, tmp_path/'p.pack')
    assert content(tmp_path/'p.pack') == content(tmp_path/'whole.pack')


def test_killed_packing_goes_on(tmp_path):
    "A process that is killed outright, not asked to stop."
    for k in 'ab':
        (tmp_path/'src'/k).mkdir(parents=True)
        for i in range(20): Image.fromarray(noise(16, 16, seed=i)).save(tmp_path/'src'/k/f'{i:02d}.png')
    code = ('import os, sys; from sagan_nb.machinery import packs, pictures; pictures.CHUNK = 8; d = pictures.decode\n'
            'def slow(l, n, *a):\n    if n == "b/10.png": os._exit(9)\n    return d(l, n, *a)\n'
            'if sys.argv[3] == "die": pictures.decode = slow\n'
            'packs.pack(sys.argv[1], 16, sys.argv[2])')
    run = lambda out, how: subprocess.run([sys.executable, '-c', code, str(tmp_path/'src'), str(tmp_path/out), how]).returncode
    assert run('p', 'die') == 9                              # in the fourth chunk, while the third was written or already there
    assert (tmp_path/'p.part'/'images.npy').stat().st_size >= packed.HEAD + 16*3*16**2
    assert run('p', 'live') == 0 and same(open_source(tmp_path/'p'), open_source(tmp_path/'src', 16))


def test_unfinished_pack_of_something_else(tree, tmp_path, monkeypatch):
    all_but_finished(monkeypatch, tree, 32, tmp_path/'p.pack')
    with pytest.raises(Refused, match='unfinished pack of other'): pack(tree, 16, tmp_path/'p.pack')
    refused('unfinished or cut off', tmp_path/'p.pack.part')
    assert len(pack(tree, 32, tmp_path/'p.pack')) == 15


def test_pack_overwrites_packs_only(tree, tmp_path):
    (tmp_path/'precious.txt').write_text('words')
    with pytest.raises(Refused, match='no pack; it is left alone'): pack(tree, 32, tmp_path/'precious.txt')
    with pytest.raises(Refused, match='is a folder'): pack(tree, 32, tmp_path)
    assert (tmp_path/'precious.txt').read_text() == 'words'
    pack(tree, 32, tmp_path/'p.pack')
    assert pack(tree, 16, tmp_path/'p.pack').res == 16
    with pytest.raises(Refused, match='packed already'): pack(tmp_path/'p.pack', 16, tmp_path/'q.pack')
    with pytest.raises(Refused, match='pixels per side'): pack(tree, 0, tmp_path/'q.pack')


def test_damaged_packs(tree, tmp_path):
    pack(tree, 32, tmp_path/'p.pack')
    whole, about = content(tmp_path/'p.pack'), json.loads((tmp_path/'p.pack'/'pack.json').read_text())
    def damaged(match, **files):
        shutil.rmtree(tmp_path/'bad.pack', ignore_errors=True)
        shutil.copytree(tmp_path/'p.pack', tmp_path/'bad.pack')
        for name, new in files.items(): (tmp_path/'bad.pack'/{'images': 'images.npy', 'labels': 'labels.npy', 'pack': 'pack.json'}[name]).write_bytes(new)
        refused(match, tmp_path/'bad.pack')
    for name in ('images', 'labels'):
        file = whole[f'{name}.npy']
        for cut in (0, 8, 100, 128, len(file)//2, len(file) - 1): damaged(f'damaged .*{name}.npy has {cut} bytes', **{name: file[:cut]})
        damaged(r'is damaged \(', **{name: file + b'x'})
        for at in (0, 7, 20, 60, 128, len(file) - 1):                                                     # one bit anywhere
            damaged(r'is damaged \(', **{name: file[:at] + bytes([file[at] ^ 1]) + file[at + 1:]})
    text = whole['pack.json']
    for cut in (0, 1, 100, len(text)//2, len(text) - 3): damaged(r'is damaged \(', pack=text[:cut])
    about.pop('seal')                                            # what follows is refused for what it says, not for its hash
    for key, lie in dict(n=10**15, res=2**40, version=3, format='x', classes=['a', 'b', 'c'], fingerprint='0'*16, chunks=[], unreadable=[]).items():
        damaged(r'is damaged \(|another version', pack=json.dumps(about | {key: lie}).encode())
    for lie in (dict(n=15.), dict(n=True), dict(n=-15), dict(res='32'), dict(n=10**15, chunks=[dict(n=10**15, sha256='x')]), dict(classes=[1, 2, 3]),
                dict(chunks=[dict(n=15, sha256='0'*64)])):
        damaged(r'is damaged \(', pack=json.dumps(about | lie).encode())
    damaged(r'is damaged \(', pack=b'[' * 10**5)
    damaged('damaged', pack=b'{"n": ' + b'9'*10**5 + b'}')
    for name in whole:
        shutil.copytree(tmp_path/'p.pack', tmp_path/'bad.pack', dirs_exist_ok=True)
        (tmp_path/'bad.pack'/name).unlink()
        refused('no pictures in' if name == 'pack.json' else 'is not there', tmp_path/'bad.pack', 32 if name == 'pack.json' else None)


def test_packs_that_execute_code_or_claim_petabytes(tree, tmp_path):
    pack(tree, 32, tmp_path/'p.pack')
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'executed'),)
    objects = io.BytesIO()
    np.save(objects, np.array([Evil()]*15), allow_pickle=True)
    for name in ('images.npy', 'labels.npy'):
        kept = (tmp_path/'p.pack'/name).read_bytes()
        (tmp_path/'p.pack'/name).write_bytes(objects.getvalue().ljust(len(kept), b'x'))                   # as long as it should be
        refused('damaged', tmp_path/'p.pack')
        (tmp_path/'p.pack'/name).write_bytes(packed.npy_header(np.uint8, (10**15, 3, 32, 32)) + kept[128:])
        refused('damaged', tmp_path/'p.pack')
        (tmp_path/'p.pack'/name).write_bytes(kept)
    assert not (tmp_path/'executed').exists() and len(open_source(tmp_path/'p.pack')) == 15
    os.truncate(tmp_path/'p.pack'/'pack.json', packed.LONGEST + 1)                                        # a sparse file
    refused('too long', tmp_path/'p.pack')


def test_a_sample_is_checked_and_the_whole_on_request(tree, tmp_path, monkeypatch):
    "Of ten chunks two are checked: a flipped bit is found now and then by the sample, always by the whole."
    monkeypatch.setattr(pictures, 'CHUNK', 2)
    for i in range(5): Image.fromarray(noise(seed=90 + i)).save(tree/'cat'/f'n{i}.png')
    pack(tree, 32, tmp_path/'p.pack')
    monkeypatch.setattr(packed, 'SAMPLED', 2 * packed.CHUNK * 3 * 32**2)
    images = tmp_path/'p.pack'/'images.npy'
    raw = bytearray(images.read_bytes())
    raw[-1] ^= 128
    images.write_bytes(raw)
    def found():
        try: packed.open_packed(tmp_path/'p.pack')
        except Refused: return True
        return False
    assert 0 < sum(found() for _ in range(60)) < 60                                                       # wrong once in 10**5 tries
    with pytest.raises(Refused, match='images 18 to 19 are not those'): packed.open_packed(tmp_path/'p.pack', whole=True)
    raw[-1] ^= 128
    images.write_bytes(raw)
    assert len(packed.open_packed(tmp_path/'p.pack', whole=True)) == 20


def test_an_old_pack_says_how_to_pack_again(tree, tmp_path):
    (tmp_path/'old.pack').write_bytes(b'SAGANPK1'.ljust(5000, b'\0'))
    refused(r'version 1, .*: pack the pictures again with sagan_pack FOLDER --res RES --out .*old\.pack', tmp_path/'old.pack')
    assert len(pack(tree, 32, tmp_path/'old.pack')) == 15 == len(open_source(tmp_path/'old.pack'))        # in its place
    assert sorted(o.name for o in tmp_path.glob('old*')) == ['old.pack']


def test_two_packs_to_one_file(tree, tmp_path):
    with packs.packing_alone(tmp_path/'p.pack'):
        with pytest.raises(Refused, match='being packed by another process'): pack(tree, 32, tmp_path/'p.pack')
    assert len(pack(tree, 32, tmp_path/'p.pack')) == 15                                                   # the lock is not left behind


@pytest.mark.parametrize('first', ['new', 'over an older pack'])
def test_killed_anywhere_packing_ends_with_the_same_bytes(tree, tmp_path, monkeypatch, first):
    "Stop at every call that touches the disk, one after the other, then pack again; what had a name before is whole."
    monkeypatch.setattr(pictures, 'CHUNK', 8)
    pack(tree, 32, tmp_path/'whole.pack')
    names = ('write_chunks', 'sync', 'finish_pack', 'put_in_place', 'remove', 'sync_folder')
    class Killed(BaseException): pass
    for k in range(100):
        for o in tmp_path.glob('p.pack*'): packs.remove(o)
        if first != 'new': pack(tree, 16, tmp_path/'p.pack')
        before, left = (tmp_path/'p.pack').exists() and content(tmp_path/'p.pack'), [k]
        with monkeypatch.context() as m:
            def stops(f):
                def call(*args):
                    left[0] -= 1
                    if left[0] < 0: raise Killed
                    return f(*args)
                return call
            for name in names: m.setattr(packs, name, stops(getattr(packs, name)))
            m.setattr(packs.os, 'replace', stops(os.replace))
            try: pack(tree, 32, tmp_path/'p.pack')
            except Killed: pass
        if (tmp_path/'p.pack').exists(): assert content(tmp_path/'p.pack') in (before, content(tmp_path/'whole.pack')), k
        pack(tree, 32, tmp_path/'p.pack')
        assert content(tmp_path/'p.pack') == content(tmp_path/'whole.pack'), k
        assert sorted(o.name for o in tmp_path.glob('p.pack*')) == ['p.pack'], k
        if left[0] >= 0: break
    assert 8 < k < 99


def test_too_many_unreadable_stop_packing_early(tree, tmp_path):
    for i in range(5): (tree/'ant'/f'bad{i}.png').write_text('words')
    with pytest.raises(Refused, match=r'5 or more of 20.*ant/bad0\.png \(not a picture\)'): pack(tree, 32, tmp_path/'p.pack')
    p = pack(tree, 32, tmp_path/'p.pack', max_bad=.5)
    assert len(p.unreadable) == 5 and len(open_source(tmp_path/'p.pack')) == 15


def test_memory_limit_names_pack(tree, monkeypatch):
    monkeypatch.setattr(pictures, 'MEMORY', 1000)
    refused('sagan_pack .* --res 32', tree, 32)


# the toy world

@pytest.mark.parametrize('res', [16, 24, 64, 128])
@pytest.mark.parametrize('world', [Toy, Pairs])
def test_worlds_at_every_size(world, res):
    source = world(res, n=400)
    x, y = source.batch(range(400))
    scores = source.long_range(from_uint8(x), y)
    assert x.shape == (400, 3, res, res) and scores['mi'] > 2.4 and .32 < diversity(from_uint8(x), y) < .37
    assert source.long_range(from_uint8(x.flip(0)), y)['mi'] > 2.2                   # of other pictures, the same
    assert source.long_range(torch.cat([from_uint8(x)[..., :res//2], from_uint8(x.flip(0))[..., res//2:]], -1), y)['mi'] < .3


def test_pairs_is_a_source_like_any_other():
    source = open_source('pairs:5', 16)
    assert (source.spec, len(source.classes)) == ('pairs:5', 5) and source.fingerprint != open_source('toy:5', 16).fingerprint
    bare = open_source('pairs', 16, unlabelled=True)
    assert bare.classes == [] and bare.long_range(from_uint8(bare.batch(range(500))[0]), torch.zeros(500))['mi'] > 2.4
    refused('say pairs, or pairs:K', 'pairs:many')


def test_toy_classes_differ():
    toy = Toy(64, 24, n=24)
    for name in ('size', 'x', 'y', 'colour', 'tone0', 'tone1', 'east', 'south'): toy.factors[name][:] = toy.factors[name][0]      # only the class is left
    x = from_uint8(toy.batch(range(24))[0]).flatten(1)
    apart = torch.cdist(x, x) / x.shape[1]**.5 + torch.eye(24)
    assert apart.min() > .05


def test_toy_does_not_depend_on_threads_or_company():
    toy, i = Toy(24, 20), torch.randint(50_000, (65,), generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        got = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            got.append(toy.batch(i)[0])
    finally: torch.set_num_threads(before)
    assert torch.equal(got[0], got[1]) and torch.equal(got[0], got[2])
    assert torch.equal(got[0][7:13], toy.batch(i[7:13])[0]) and torch.equal(got[0][:1], toy.batch([i[0].item()])[0])


def test_measure_of_collapse():
    x, y = Toy().batch(range(1200))
    x = from_uint8(x)
    one = x[:1].expand(1200, -1, -1, -1)
    assert long_range(one)['mi'] == 0 and long_range(one)['agreement'] == 1 == long_range(one)['chance'] and diversity(one, y) < 1e-6
    assert long_range(torch.zeros_like(x))['mi'] == 0 and long_range(torch.rand_like(x)*2 - 1)['mi'] < .2
    grid = x[y]                                                                                           # one picture per class
    assert long_range(grid)['mi'] > 1 and long_range(grid, y=y)['mi'] == 0


# the stream

def labels(stream, n): return [next(stream)[1].tolist() for _ in range(n)]


class Indices:
    "Picture i has label i and its value in every pixel; drawing can be slow or fail."
    res, spec = 2, 'indices'
    def __init__(self, n, pause=0., fail_at=None): self.n, self.pause, self.fail_at, self.calls = n, pause, fail_at, 0
    def __len__(self): return self.n
    def batch(self, i):
        self.calls += 1
        if self.calls == self.fail_at: raise OSError('disk gone')
        time.sleep(self.pause)
        ramp = torch.arange(12).view(1, 3, 2, 2)
        return (ramp + i.view(-1, 1, 1, 1)).to(torch.uint8), i


def test_stream_is_epochs_of_permutations():
    got = sum(labels(Stream(Indices(50), 20), 25), [])
    epochs = [got[i:i + 50] for i in range(0, 500, 50)]
    assert all(sorted(e) == list(range(50)) for e in epochs) and len({tuple(e) for e in epochs}) == 10
    assert labels(Stream(Indices(50), 20, seed=1), 3) != labels(Stream(Indices(50), 20), 3)


def test_batch_larger_than_the_set():
    got = sum(labels(Stream(Indices(3), 10), 3), [])
    assert all(sorted(got[i:i + 3]) == [0, 1, 2] for i in range(0, 30, 3))


@pytest.mark.parametrize('flip', [False, True])
def test_resume_and_ranks(flip):
    whole = Stream(Toy(16, n=100), 12, seed=5, flip=flip)
    ref = [next(whole) for _ in range(20)]
    fresh = Stream(Toy(16, n=100), 12, seed=5, flip=flip)
    next(fresh)
    for t in (7, 3, 19, 0):
        fresh.load_state_dict({'t': t})
        assert all(torch.equal(a, b) for a, b in zip(next(fresh), ref[t])) and fresh.state_dict() == {'t': t + 1}
    fresh.t = 8
    assert torch.equal(next(fresh)[0], ref[8][0])
    for world in (2, 3, 4):
        ranks = [Stream(Toy(16, n=100), 12, seed=5, rank=r, world=world, flip=flip, start=6) for r in range(world)]
        for t in range(6, 12):
            parts = [next(r) for r in ranks]
            assert all(len(x) == 12 // world for x, _ in parts)
            assert torch.equal(torch.cat([x for x, _ in parts]), ref[t][0]) and torch.equal(torch.cat([y for _, y in parts]), ref[t][1])


def test_flip_is_about_half():
    a, b = Stream(Indices(1000), 500, flip=True), Stream(Indices(1000), 500)
    turned = (next(a)[0] != next(b)[0]).flatten(1).any(1)
    assert 200 < turned.sum() < 300


def test_stream_refuses():
    for match, kw in (('cannot be shared by 3', dict(batch=10, world=3)), ('does not exist', dict(batch=4, rank=2, world=2)), ('cannot be shared', dict(batch=0))):
        with pytest.raises(Refused, match=match): Stream(Indices(10), **kw)
    with pytest.raises(Refused, match='no pictures'): Stream(Indices(0), 4)


def test_reading_ahead_hides_the_wait():
    s = Stream(Indices(40, pause=.05), 8)
    next(s)
    time.sleep(.15)
    before = s.wait_s
    next(s)
    assert before > .04 and s.wait_s - before < .03                      # the second batch was ready
    now = s.wait_s
    next(s)
    assert s.wait_s - now > .02                                          # the third was not, and that is recorded
    s.close()


def test_random_pauses_do_not_change_the_order():
    class Jitter(Indices):
        def batch(self, i):
            time.sleep(float(np.random.rand()) * .004)
            return super().batch(i)
    s, got = Stream(Jitter(33), 7), []
    for _ in range(40):
        got.append(next(s)[1].tolist())
        time.sleep(float(np.random.rand()) * .004)
    quiet = Stream(Indices(33), 7)
    quiet.close()
    assert got == labels(quiet, 40)


def test_one_reader_at_a_time():
    class Alone(Indices):
        busy, met = False, False
        def batch(self, i):
            self.met |= self.busy
            self.busy = True
            try: return super().batch(i)
            finally: self.busy = False
    source = Alone(40, pause=.02)
    s = Stream(source, 8)
    for t in (3, 9, 0, 5):
        s.t = t
        next(s)
    s.close()
    assert not source.met


def test_a_fault_while_reading_ahead_is_raised():
    s = Stream(Indices(40, fail_at=3), 8)
    first = labels(s, 2)
    with pytest.raises(OSError, match='disk gone'): next(s)
    assert s.t == 2 and labels(s, 1) == labels(Stream(Indices(40), 8, start=2), 1) and first == labels(Stream(Indices(40), 8), 2)


def test_close_ends_the_thread():
    s = Stream(Indices(40, pause=.01), 8)
    next(s)
    assert [t for t in threading.enumerate() if 'sagan_nb-stream' in t.name and t in s.pool._threads]
    workers = set(s.pool._threads)
    s.close()
    s.close()
    assert not any(t.is_alive() for t in workers) and len(next(s)[1]) == 8


def test_a_process_ends_with_a_stream_open():
    code = 'from sagan_nb.data import Stream, Toy; s = Stream(Toy(16), 8); next(s); next(s); print("done")'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == 'done\n' and not done.stderr


def test_import_is_light():
    code = 'import sys, sagan_nb.data; print([m for m in ("PIL", "matplotlib", "torchvision", "scipy", "rich") if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout == '[]\n'


# real pictures

def test_cifar10():
    listing = list_pictures(real('cifar10-train.zip'))
    assert np.bincount(listing.labels).tolist() == [5000]*10 and listing.classes[0] == 'airplane' and listing.classes[-1] == 'truck'
    listing.names, listing.labels = listing.names[7::10], listing.labels[7::10]                           # a tenth is enough
    s = pictures.load_pictures(listing, 32)
    assert len(s) == 5000 and s.counts == [500]*10 and not s.unreadable
    with zipfile.ZipFile(SHARED/'cifar10-train.zip') as z, z.open('train/airplane/0007.jpg') as f:
        assert np.array_equal(s.batch([0])[0][0].permute(1, 2, 0).numpy(), np.asarray(Image.open(f)))     # 32 px come through untouched
    x, y = s.batch(range(0, 5000, 5))
    assert .4 < diversity(from_uint8(x), y) < .6


def test_tiny_imagenet():
    z = real('tiny-imagenet-20.zip')
    refused('tiny-imagenet-20.zip:train', z, 64)
    train, val = open_source(z + ':train', 64), open_source(z + ':val', 64)
    assert train.classes == val.classes and len(train.classes) == 20 and set(train.counts) == {500} and set(val.counts) == {50}
    x = train.batch(range(10_000))[0]
    grey = (x[:, 0] == x[:, 1]).flatten(1).all(1).sum()
    assert 0 < grey < 1000 and not train.unreadable


def test_imagenet_sample_packs(tmp_path):
    z = real('imagenet-sample.zip')
    p = pack(z, 64, tmp_path/'p.pack')
    assert len(p) == 1000 and p.counts == [1]*1000 and p.classes == sorted(p.classes) and not p.unreadable
    assert same(p, open_source(z, 64)) and 'and 960 more classes' in describe(p)
    stretched = open_source(z, 64, stretch=True)
    assert not same(p, stretched) and stretched.fingerprint != p.fingerprint
