"Files from strangers: a corpus made by code. Each is refused, or left out and named; nothing is executed, and memory is bounded."
import io
import json
import os
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import shell
from PIL import Image

from sagan_nb.config import PRESETS, at_scale
from sagan_nb.core import Refused, show_grid
from sagan_nb.data import open_source
from sagan_nb.machinery import checkpoints, door, drawing, files, listing, many, options, pictures, runs
from sagan_nb.machinery.arrays import find_arrays
from sagan_nb.machinery.many import write_many
from sagan_nb.machinery.options import pick_classes
from sagan_nb.machinery.packs import pack
from sagan_nb.machinery.publish import export
from sagan_nb.machinery.sources import describe
from sagan_nb.machinery.terminal import printable


def test_a_name_is_shown_and_does_nothing():
    name = os.fsdecode(b'caf\xc3\xa9 \xff\n\x1b[2J')                          # as Linux hands on the name of a folder
    assert printable(name) == 'café \\udcff\\n\\x1b[2J'
    assert printable(printable(name)) == printable(name)


def encoded(h=40, w=40, format='PNG', seed=0, **how):
    "The bytes of an image of noise."
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)).save(out, format, **how)
    return out.getvalue()


def tree(folder, n=10, classes='ab'):
    "A folder with n images for each class."
    for k in classes:
        (folder/k).mkdir(parents=True)
        for i in range(n): (folder/k/f'{i}.png').write_bytes(encoded(seed=i))
    return folder


def png_that_claims(w, h):
    "A PNG of a few bytes with a header that says otherwise."
    b = bytearray(encoded(1, 1))
    b[16:24] = struct.pack('>II', w, h)
    b[29:33] = struct.pack('>I', zlib.crc32(bytes(b[12:29])))
    return bytes(b)


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    "A zip of (name or ZipInfo, bytes), and ten good images in each of two classes."
    with zipfile.ZipFile(path, 'w', method) as z:
        for k in 'ab':
            for i in range(10): z.writestr(f'{k}/{i}.png', encoded(seed=i))
        for name, content in members: z.writestr(name, content)
    return path


def grown(code):
    "By how many MiB the peak of a process grows while it opens something."
    ask = ('import resource, sys\nfrom sagan_nb.data import open_source\nfrom sagan_nb.machinery import pictures\nfrom PIL import Image\n'
           'rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\nbefore = rss()\n' + code + '\nprint("grew", rss() - before)')
    done = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


# zips

@pytest.mark.parametrize('name', ['../../evil.png', '/etc/evil.png', 'a/../../evil.png', '..\\evil.png', 'C:\\evil.png', 'C:evil.png', '\\evil.png'])
def test_members_that_leave_the_zip_are_left_out_and_named(tmp_path, capsys, name):
    place = tmp_path/'a'/'b'
    place.mkdir(parents=True)
    s = open_source(zipped(place/'z.zip', [(name, encoded())]), 16)
    assert len(s) == 20 and s.found['left_out'] == {'links, absolute names or names with ..': 1}
    assert '1 links, absolute names or names with ..' in capsys.readouterr().out
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == [place/'z.zip'] and not Path('/etc/evil.png').exists()


def test_links_in_a_zip_are_left_out(tmp_path):
    link = zipfile.ZipInfo('a/link.png')
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    s = open_source(zipped(tmp_path/'z.zip', [(link, '/etc/passwd')]), 16)
    assert len(s) == 20 and s.found['left_out'] == {'links, absolute names or names with ..': 1}


@pytest.mark.parametrize('write', ['./{}/{}', '{}\\{}', '.\\{}\\{}', 'data//{}/./{}'])
def test_names_as_other_tools_write_them(tmp_path, write):
    with zipfile.ZipFile(tmp_path/'z.zip', 'w') as z:
        for k in 'ab':
            for i in range(5):
                info = zipfile.ZipInfo('x')
                info.filename = write.format(k, f'{i}.png')                             # as it is: ZipInfo would tidy it
                z.writestr(info, encoded(seed=i))
    assert open_source(tmp_path/'z.zip', 16).counts == [5, 5]


def test_names_without_the_utf8_mark(tmp_path):
    "macOS writes UTF-8 and does not say so."
    with zipfile.ZipFile(tmp_path/'z.zip', 'w') as z:
        for k in ('Küche', 'Bad'):
            for i in range(3):
                info = zipfile.ZipInfo(f'{k}/{i}.png')
                z.writestr(info, encoded(seed=i))
    raw = (tmp_path/'z.zip').read_bytes()
    for mark in (b'PK\x03\x04', b'PK\x01\x02'):
        at, flags = -1, 6 if mark == b'PK\x03\x04' else 8
        while (at := raw.find(mark, at + 1)) >= 0: raw = raw[:at + flags + 1] + bytes([raw[at + flags + 1] & ~8]) + raw[at + flags + 2:]
    (tmp_path/'z.zip').write_bytes(raw)
    assert not zipfile.ZipFile(tmp_path/'z.zip').infolist()[0].flag_bits & 0x800
    assert open_source(tmp_path/'z.zip', 16).classes == ['Bad', 'Küche']


def test_zip_bombs_are_bounded(tmp_path):
    "A gigabyte of zeros in a megabyte, honest and lying about its size."
    with zipfile.ZipFile(zipped(tmp_path/'honest.zip', []), 'a', zipfile.ZIP_DEFLATED) as z, z.open('a/big.png', 'w', force_zip64=True) as f:
        for _ in range(64): f.write(bytes(1 << 24))
    raw = bytearray((tmp_path/'honest.zip').read_bytes())
    at = raw.rindex(b'PK\x01\x02')
    assert struct.unpack_from('<I', raw, at + 24)[0] == 1 << 30
    struct.pack_into('<I', raw, at + 24, 1000)                                          # the central directory says 1000 bytes
    (tmp_path/'lying.zip').write_bytes(raw)
    for name, why in (('honest', 'larger than 128 MiB'), ('lying', '')):
        assert grown(f's = open_source({str(tmp_path/name)!r} + ".zip", 16, max_bad=.5)\nassert len(s) == 20 and {why!r} in s.unreadable["a/big.png"]') < 300


@pytest.mark.parametrize('method', [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_a_reason(tmp_path, method):
    with zipfile.ZipFile(zipped(tmp_path/'z.zip', []), 'a', method) as z: z.writestr('a/other.png', encoded())
    assert open_source(tmp_path/'z.zip', 16, max_bad=.1).unreadable == {'a/other.png': 'compressed by another method than deflate'}


def test_an_encrypted_member_is_a_reason(tmp_path):
    raw = bytearray(zipped(tmp_path/'z.zip', [('a/locked.png', encoded())]).read_bytes())
    for mark, flags in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)): raw[raw.rindex(mark) + flags] |= 1
    (tmp_path/'z.zip').write_bytes(raw)
    assert 'encrypted' in open_source(tmp_path/'z.zip', 16, max_bad=.1).unreadable['a/locked.png']


# folders

def test_pipes_sockets_and_devices_are_not_waited_for(tmp_path, monkeypatch):
    tree(tmp_path/'d')
    os.mkfifo(tmp_path/'d'/'a'/'pipe.png')
    (tmp_path/'d'/'b'/'zeros.png').symlink_to('/dev/zero')
    s = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path/'d'/'b')
    s.bind('socket.png')
    os.symlink('nowhere', 'dangling.png')
    s = open_source(tmp_path/'d', 16, max_bad=.5)
    reason = 'a pipe, socket or device, not a file'
    assert {k: v for k, v in s.unreadable.items() if 'dang' not in k} == {'a/pipe.png': reason, 'b/zeros.png': reason, 'b/socket.png': reason}
    assert 'No such file' in s.unreadable['b/dangling.png'] and len(s) == 20


def test_a_pipe_called_zip_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path/'x.zip')
    with pytest.raises(Refused, match='is a pipe'): open_source(tmp_path/'x.zip', 16)
    tree(tmp_path/'d')
    pack(tmp_path/'d', 16, tmp_path/'p.pack')
    (tmp_path/'p.pack'/'images.npy').unlink()
    os.mkfifo(tmp_path/'p.pack'/'images.npy')
    with pytest.raises(Refused, match='is not there'): open_source(tmp_path/'p.pack')


def test_headers_that_claim_gigapixels(tmp_path):
    tree(tmp_path/'d')
    for name, size in (('giga', (60_000, 60_000)), ('large', (12_000, 12_000)), ('most', (2**31 - 1, 2**31 - 1)), ('line', (10**9, 1))):
        (tmp_path/'d'/'a'/f'{name}.png').write_bytes(png_that_claims(*size))
    code = (f's = open_source({str(tmp_path/"d")!r}, 16, max_bad=.5)\n'
            'assert len(s.unreadable) == 4 and len(s) == 20 and "DecompressionBomb" in s.unreadable["a/giga.png"], s.unreadable')
    assert grown(code) < 300


def test_an_image_bomb_is_bounded(tmp_path):
    "81 million pixels in 80 kB: decoded, one at a time, within the bound; just above the limit: refused."
    tree(tmp_path/'d')
    for i in range(3): Image.new('L', (9000, 9000), 200).save(tmp_path/'d'/'a'/f'big{i}.png')
    Image.new('1', (10_001, 10_000), 1).save(tmp_path/'d'/'b'/'over.png')
    code = f's = open_source({str(tmp_path/"d")!r}, 16, max_bad=.5)\nassert list(s.unreadable) == ["b/over.png"] and "100 million" in s.unreadable["b/over.png"], s.unreadable'
    assert grown(code) < 1500


def test_a_large_file_is_a_reason(tmp_path, monkeypatch):
    tree(tmp_path/'d')
    monkeypatch.setattr(listing, 'LARGEST_FILE', 20_000)
    (tmp_path/'d'/'a'/'big.png').write_bytes(encoded(100, 100))
    assert 'larger than' in open_source(tmp_path/'d', 16, max_bad=.5).unreadable['a/big.png']


# names

NAMES = ['cat\nprint me', '\x1b[2J\x1b[31mred', '$x_1$ and $', '<img src=x onerror=alert(1)>', 'caf\udce9', 'right\u202eto left', ' ', '%s{}']


def test_names_are_shown_harmlessly(tmp_path, capsys):
    for name in NAMES: tree(tmp_path/'d', 3, [name])
    (tmp_path/'d'/NAMES[0]/'bad\n.png').write_text('words')
    (tmp_path/'d'/NAMES[1]/'notes.t\x1bxt').write_text('words')
    s = open_source(tmp_path/'d', 16, max_bad=.5)
    p = pack(tmp_path/'d', 16, tmp_path/'p.pack', max_bad=.5)
    said = capsys.readouterr().out + describe(s) + describe(p) + ''.join(p.classes)
    assert all(c.isprintable() or c == '\n' for c in said) and said.encode() and 'cat\\nprint me' in said
    assert s.classes == p.classes == [printable(n) for n in sorted(NAMES)] and p.fingerprint == s.fingerprint
    assert all(len(line) < 400 for line in said.splitlines()) and not any(line.startswith('print me') for line in said.splitlines())
    fig = show_grid(torch.zeros(8, 3, 16, 16), 1, rows=s.classes, title='$\n')
    fig.savefig(tmp_path/'grid.png')
    (tmp_path/'d'/'empty\n').mkdir()
    with pytest.raises(Refused, match=r'empty\\n') as e: open_source(tmp_path/'d', 16)
    assert '\n' not in str(e.value)


def test_two_names_that_look_the_same(tmp_path):
    tree(tmp_path/'d', 3, ['a\n', 'a\\n'])
    with pytest.raises(Refused, match="look the same"): open_source(tmp_path/'d', 16)


def test_class_names_of_a_strange_pack(tmp_path):
    tree(tmp_path/'d')
    pack(tmp_path/'d', 16, tmp_path/'p.pack')
    about = json.loads((tmp_path/'p.pack'/'pack.json').read_text())
    about['classes'] = ['a\x1b[2J', 'b']
    (tmp_path/'p.pack'/'pack.json').write_text(json.dumps(about))
    with pytest.raises(Refused, match='other values than were written'): open_source(tmp_path/'p.pack')
    del about['seal']                                                                    # as a stranger would write it
    (tmp_path/'p.pack'/'pack.json').write_text(json.dumps(about))
    with pytest.raises(Refused, match='do not fit the fingerprint'): open_source(tmp_path/'p.pack')


# what is left out, and what looks wrong

def test_what_is_left_out_is_counted_by_kind(tmp_path, capsys):
    d = tree(tmp_path/'d')
    for i in range(30): (d/'a'/f'w{i}.jfif').write_bytes(encoded(format='JPEG', seed=i))
    for i in range(7): (d/'a'/f'{i}.heic').write_bytes(b'x')
    for name in ('b/no_ending', 'b/also none', '.thumbs/x.png', 'a/.hidden.png', 'readme.txt'):
        (d/name).parent.mkdir(exist_ok=True)
        (d/name).write_bytes(encoded())
    s = open_source(d, 16)
    assert s.counts == [40, 10] and s.found['left_out'] == {'.heic': 7, 'without an ending': 2, 'hidden': 2, '.txt': 1}
    assert 'left out: 7 .heic, 2 hidden, 2 without an ending, 1 .txt\n' in capsys.readouterr().out
    (d/'c').mkdir()
    (d/'c'/'x.heic').write_bytes(b'x')
    with pytest.raises(Refused, match=r'without a picture.*: c\..*left out: 8 \.heic'): open_source(d, 16)


def test_a_folder_that_may_not_be_opened_is_counted_and_other_faults_are_raised(tmp_path, monkeypatch):
    "As the owner of a disk finds lost+found beside the classes; who may open everything needs the fault injected."
    d, scan = tree(tmp_path/'d'), os.scandir
    (d/'lost+found'/'inside').mkdir(parents=True)
    def fail(e):
        def scandir(path):
            if 'lost' in str(path): raise e
            return scan(path)
        monkeypatch.setattr(os, 'scandir', scandir)
    fail(PermissionError(13, 'Permission denied', str(d/'lost+found')))
    assert open_source(d, 16, unlabelled=True).found['left_out'] == {'folders that may not be opened': 1}
    with pytest.raises(Refused, match=r'without a picture.*lost.found.*left out: 1 folders that may not be opened'): open_source(d, 16)
    fail(OSError(5, 'Input/output error', str(d/'lost+found')))
    with pytest.raises(OSError, match='Input/output error'): open_source(d, 16, unlabelled=True)


def test_avif_is_read_where_pillow_can(tmp_path):
    from PIL import features
    if not features.check('avif'): pytest.skip('this Pillow reads no AVIF')
    d = tree(tmp_path/'d')
    (d/'a'/'x.avif').write_bytes(encoded(format='AVIF'))
    assert open_source(d, 16).counts == [11, 10]


def black(kind):
    rng = np.random.default_rng(0)
    if kind == '12 bit': return Image.fromarray(rng.integers(0, 4096, (40, 40)).astype(np.uint16)), 'png'
    if kind == '32-bit tiff': return Image.fromarray(rng.integers(0, 256, (40, 40)).astype(np.int32)), 'tif'
    if kind == 'mask': return Image.fromarray(rng.integers(0, 2, (40, 40), dtype=np.uint8)), 'png'
    if kind == 'alpha': return Image.fromarray(np.dstack([np.zeros((40, 40, 3), np.uint8), rng.integers(0, 256, (40, 40), dtype=np.uint8)])), 'png'
    return Image.new('CMYK', (40, 40), (255, 255, 255, 255)), 'jpg'


@pytest.mark.parametrize('kind', ['12 bit', '32-bit tiff', 'mask', 'alpha', 'cmyk'])
def test_images_that_become_black_are_named(tmp_path, capsys, kind):
    d = tree(tmp_path/'d')
    picture, ending = black(kind)
    picture.save(d/'a'/f'x.{ending}')
    s = open_source(d, 32)
    assert s.found['nearly_black'] == [f'a/x.{ending}'] and f'1 of 21 pictures are nearly black, with no value above 64 of 255: a/x.{ending}' in capsys.readouterr().out


def test_truncated_images_are_read_on_request(tmp_path, capsys):
    d = tree(tmp_path/'d')
    for i, format in enumerate(('JPEG', 'PNG')):
        whole = encoded(200, 200, format)
        (d/'a'/f'cut{i}.{format.lower()}').write_bytes(whole[:len(whole)*2//3])
    with pytest.raises(Refused, match=r'2 or more of 22 .*limit is 1%.*--bad 100% leaves out all of them, and lists them in a file\), or read truncated ones as far as they go with --truncated'): open_source(d, 32)
    s = open_source(d, 32, truncated=True)
    assert len(s) == 22 and not s.unreadable and s.found['truncated'] == ['a/cut0.jpeg', 'a/cut1.png']
    assert '2 of 22 pictures are truncated and read as far as they go: a/cut0.jpeg, a/cut1.png' in capsys.readouterr().out
    from PIL import ImageFile
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pictures.reading_images(truncated=True): p = pack(d, 32, tmp_path/'p.pack')
    assert p.fingerprint == s.fingerprint and p.found == s.found


def test_the_share_of_unreadable_images(tmp_path):
    d = tree(tmp_path/'d')
    (d/'a'/'bad.png').write_text('words')
    with pytest.raises(Refused, match='limit is 1%'): open_source(d, 16)
    for bad in ('5%', '0.05', '100%', ' 5 %'):
        with pictures.reading_images(bad=bad): assert len(open_source(d, 16)) == 20
    for bad in ('-1%', '101%', 'nan', 'five', '5', ''):
        with pytest.raises(Refused, match='share of unreadable'), pictures.reading_images(bad=bad): pass
    with pytest.raises(Refused, match='limit is 1%'): open_source(d, 16)


@pytest.mark.parametrize('name', ['toy', 'pairs', 'twins', 'toy:3'])
def test_a_folder_called_like_a_world(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    tree(tmp_path/name)
    with pytest.raises(Refused, match=rf'say \./{name} for that one, or {name.split(":")[0]}: for the world'): open_source(name, 32)
    assert open_source(f'./{name}', 32).classes == ['a', 'b'] and len(open_source(name.split(':')[0] + ':')) == 50_000
    with pytest.raises(Refused, match='for the world'): pack(name, 32, tmp_path/'p.pack')


# commands

def test_options_of_every_command_that_opens_images(tmp_path, monkeypatch, capsys):
    d = tree(tmp_path/'d')
    whole = encoded(200, 200, 'JPEG')
    (d/'a'/'cut.jpg').write_bytes(whole[:len(whole)//2])
    (d/'a'/'words.png').write_text('words')
    code, _, err = shell(monkeypatch, capsys, 'sagan_pack', d, '--res', 32, '--out', tmp_path/'p.pack')
    assert code == 1 and 'limit is 1%' in err and '--bad 100%' in err and '--truncated' in err and err.count('\n') == 1
    code, out, _ = shell(monkeypatch, capsys, 'sagan_pack', d, '--res', 32, '--out', tmp_path/'p.pack', '--bad', '5%', '--truncated')
    assert code == 0 and '1 of 22 pictures are truncated' in out and len(open_source(tmp_path/'p.pack')) == 21
    code, _, err = shell(monkeypatch, capsys, 'sagan_pack', d, '--res', 32, '--out', tmp_path/'q.pack', '--bad', 'some')
    assert code == 1 and 'share of unreadable' in err
    for command in ('sagan_train', 'sagan_eval', 'sagan_sample', 'sagan_attention', 'sagan_table', 'sagan_pack', 'sagan_report'):
        code, out, _ = shell(monkeypatch, capsys, command, '--help')
        assert code == 0 and '--bad' in out and '--truncated' in out, command
    code, out, _ = shell(monkeypatch, capsys, 'sagan_train', 't1_none', '--data', d, '--scale', 'smoke', '--out', tmp_path/'run', '--bad', '10%')
    facts = json.loads((tmp_path/'run'/'data.json').read_text())
    assert code == 0 and set(facts['unreadable']) == {'a/cut.jpg', 'a/words.png'} and f'{tmp_path}/run/data.json' in out
    assert pictures.READING == pictures.Reading()
    code, out, _ = shell(monkeypatch, capsys, 'sagan_table', 'table1', '--data', tmp_path/'p.pack', '--scale', 'smoke', '--print_commands', '--bad', '5%', '--truncated')
    assert code == 0 and all('--bad 0.05 --truncated' in line for line in out.splitlines())


def test_a_pack_is_verified_on_request(tmp_path, monkeypatch, capsys):
    pack(tree(tmp_path/'d'), 32, tmp_path/'p.pack')
    code, out, _ = shell(monkeypatch, capsys, 'sagan_pack', tmp_path/'p.pack', '--verify')
    assert code == 0 and 'every picture is as it was packed\n' in out
    raw = bytearray((tmp_path/'p.pack'/'images.npy').read_bytes())
    raw[-1] ^= 1
    (tmp_path/'p.pack'/'images.npy').write_bytes(raw)
    code, _, err = shell(monkeypatch, capsys, 'sagan_pack', tmp_path/'p.pack', '--verify')
    assert code == 1 and 'images 0 to 19 are not those' in err
    code, _, err = shell(monkeypatch, capsys, 'sagan_pack', tmp_path/'d', '--verify')
    assert code == 1 and 'is no pack' in err


@pytest.mark.parametrize('res,ok', [(32, True), (256, True), (16, True), (48, False), (0, False), (-1, False), (129, False)])
def test_sizes_that_nothing_trains_on(tmp_path, monkeypatch, capsys, res, ok):
    code, out, err = shell(monkeypatch, capsys, 'sagan_pack', tree(tmp_path/'d', 2), f'--res={res}', '--out', tmp_path/'p.pack')
    assert (code == 0) == ok == (tmp_path/'p.pack').exists()
    assert ('nothing trains on 16' in out) == (res == 16) and ('sagan_train' in out) == (res in (32, 256)) and ok or '32, 64, 128, 256' in err


def test_classes_from_a_command_line():
    names = sorted(['1', '2', '3', '10'])
    assert [names[k] for k in pick_classes('1,10,3', names)] == ['1', '10', '3'] and pick_classes('1', ['cat', 'dog']) == [1]
    assert pick_classes('0_disc', ['0_disc', '1_ring']) == [0] == pick_classes('0', ['0_disc', '1_ring'])
    assert pick_classes('a, b', ['a, b', 'c']) == [0]
    assert pick_classes(None, ['a', 'b']) == [0, 1] and pick_classes(None, []) == [0]
    with pytest.raises(Refused, match="no class 'c'; there are 2: a, b"): pick_classes('c', ['a', 'b'])
    for text in ('0', '4', 'cat'):
        with pytest.raises(Refused, match='there is no class'): pick_classes(text, names)


def test_home_spaces_and_moved_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tree(tmp_path/'my data', 12)
    code, out, _ = shell(monkeypatch, capsys, 'sagan_train', 't1_none', '--data=~/my data', '--scale', 'smoke', '--out=~/first run')
    assert code == 0 and (tmp_path/'first run'/'config.json').exists() and not (tmp_path/'~').exists()
    assert f"sagan_sample '{tmp_path}/first run' --n 64 --out more.png" in out
    os.rename('my data', 'elsewhere')
    code, _, err = shell(monkeypatch, capsys, 'sagan_train', '--resume', '--out', 'first run', '--steps', 6)
    assert code == 1 and 'if it was moved, say where it is (--data)' in err
    code, _, err = shell(monkeypatch, capsys, 'sagan_train', '--resume', '--out', 'first run', '--steps', 6, '--data', 'elsewhere')
    assert code == 0 and json.loads((tmp_path/'first run'/'config.json').read_text())['data'] == 'elsewhere'
    (tmp_path/'elsewhere'/'a'/'new.png').write_bytes(encoded(seed=99))
    code, _, err = shell(monkeypatch, capsys, 'sagan_train', '--resume', '--out', 'first run', '--steps', 8, '--data', 'elsewhere')
    assert code == 1 and 'data_id was' in err                                           # other images are not the same run
    (tmp_path/'first run'/'data.json').write_text('')
    code, _, err = shell(monkeypatch, capsys, 'sagan_sample', 'first run', '--n', 4, '--out', 'x.png')
    assert code == 1 and 'data.json is damaged' in err and 'delete it, and classes are called by their numbers' in err and err.count('\n') == 1
    (tmp_path/'first run'/'data.json').unlink()
    code, out, _ = shell(monkeypatch, capsys, 'sagan_sample', 'first run', '--n', 4, '--out', 'x.png')
    assert code == 0


def test_imbalanced_classes():
    "A perfect generator: with uniform labels its distance is large, and noted; with labels as in the data it is near 0."
    from sagan_nb.core import from_uint8
    from sagan_nb.data import Toy
    from sagan_nb.machinery.evaluate import evaluate
    from sagan_nb.machinery.features import domain
    from sagan_nb.machinery.pictures import Pictures

    def source(counts, seed):
        toy = Toy(32, n_classes=2, n=3000, seed=seed)
        x, y = toy.batch(torch.cat([torch.arange(k, 2*c, 2)[:c] for k, c in enumerate(counts)]))
        return Pictures(x.numpy(), y, toy.classes, f'mine-{seed}', f'{seed}-{counts}', {})

    class Perfect(torch.nn.Module):
        res, z_dim, n_classes = 32, 8, 2
        def __init__(self):
            super().__init__()
            self.p, self.of = torch.nn.Parameter(torch.zeros(1)), source((600, 600), 7)
            self.rows = [(self.of.labels == k).nonzero()[:, 0] for k in range(2)]
        def forward(self, z, y):
            rows = [self.rows[k][int(v.abs().sum()*1e4) % 600] for v, k in zip(z, y.tolist())]
            return from_uint8(self.of.batch(torch.stack(rows))[0])

    skewed, G = source((1100, 50), 0), Perfect().eval()
    features = domain(source((600, 600), 3), cache=None)
    assert 'classes are imbalanced, 50 to 1,100 pictures' in describe(skewed) and 'imbalanced' not in describe(source((600, 600), 0))
    found = {k: evaluate(G, skewed, ['distance', 'intra'], features, n_fake=1000, cache=None, labels=k) for k in ('uniform', 'data')}
    (plain, intra), (drawn, _) = found['uniform'], found['data']
    note = 'labels are drawn uniformly, but classes are imbalanced, 50 to 1,100 pictures'
    assert plain['notes'] == [note] and note not in intra.get('notes', ()) and 'notes' not in drawn and drawn['labels'] == 'data'
    assert drawn['value'] < .1 * plain['value']


def test_weights_that_claim_more_than_they_hold(tmp_path):
    "A stride of 0 makes 1e11 numbers of one; names that are no numbers where ours have numbers."
    from sagan_nb.interop import load_weights
    t = torch.zeros(1).expand(10**5, 10**6)
    torch.save({'linear.bias': t, 'output_layer.2.bias': t, 'blocks.0.0.conv1.bias': t}, tmp_path/'w.pth')
    with pytest.raises(Refused, match='claims 100,000,000,000 numbers, more than the file holds'): load_weights(tmp_path/'w.pth')
    odd = {'linear.bias': torch.zeros(4), 'linear.weight': torch.zeros(4, 4), 'blocks.0.conv1.bias': torch.zeros(4), 'blocks.x.conv2.weight': torch.zeros(4, 4)}
    with pytest.raises(Refused, match='not those of a SAGAN'): load_weights(odd)


@pytest.mark.parametrize('content', [b'', b'{', b'\xff\xfe{', b'[' * 100_000, b'{"t": 1' + b'0' * 5000 + b'}', b'5', b'"x"', b'{"t": 1, "seal": "sha256:0"}', b'{"t": 1, "sale": "sha256:0"}'])
def test_json_beside_a_run(tmp_path, content):
    "Each file is refused by its name, in one sentence that says what to do; a log without a line is an empty log."
    from sagan_nb.machinery import evaluate, jobs
    for name, read in (('data.json', lambda: runs.class_names(tmp_path, 4)), ('env.json', lambda: runs.machines(tmp_path)), ('config.json', lambda: runs.settings_of(tmp_path)),
                       ('metrics.json', lambda: evaluate.run_scores(tmp_path)), ('t1_none-s0-a-v2.json', lambda: jobs.collect(tmp_path)), ('log.jsonl', lambda: runs.read_log(tmp_path/'log.jsonl'))):
        path = tmp_path/name
        if name == 'log.jsonl' and content[:1] in (b'', b'{', b'\xff') and not content.endswith(b'}'): content += b'}\n{'        # else the end of a crash
        path.write_bytes(content)
        with pytest.raises(Refused, match=name) as e: read()
        assert '\n' not in str(e.value) and len(str(e.value)) < 500
        path.unlink()


# what a second tester found

EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n%%EOF\n'


def test_no_other_program_is_handed_a_file(tmp_path, monkeypatch):
    "PostScript called .png: Pillow would start Ghostscript with it."
    (tmp_path/'bin').mkdir()
    (gs := tmp_path/'bin'/'gs').write_text(f'#!/bin/sh\ntouch {tmp_path}/ran\n')
    gs.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path/"bin"}:{os.environ["PATH"]}')
    d = tree(tmp_path/'d')
    (d/'a'/'x.png').write_bytes(EPS)
    with pictures.reading_images(bad='50%'): s = open_source(d, 16)
    assert s.unreadable == {'a/x.png': 'not a picture'} and not (tmp_path/'ran').exists()
    assert {'JPEG', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF', 'PPM'} <= {*pictures.known_formats()} and not {'EPS', 'WMF', 'PSD', 'FITS'} & {*pictures.known_formats()}


@pytest.mark.parametrize('end', ['', '.old', '.part'])
def test_a_pack_replaces_packs_alone(end, tmp_path):
    d = tree(tmp_path/'d')
    (there := tmp_path/f'p{end}').mkdir()
    for name in ('images.npy', 'pack.json', 'thesis.tex'): (there/name).write_text('precious')
    with pytest.raises(Refused, match='holds what is not of a pack .thesis.tex.; it is left alone'): pack(d, 16, tmp_path/'p')
    assert (there/'thesis.tex').read_text() == 'precious' and {p.name for p in there.iterdir()} == {'images.npy', 'pack.json', 'thesis.tex'}
    shutil.rmtree(there)
    (tmp_path/'p.part.log').write_text('my log')
    with pytest.raises(Refused, match='p.part.log is no log of ours'): pack(d, 16, tmp_path/'p')
    (tmp_path/'p.part.log').unlink()
    pack(d, 16, tmp_path/'p')
    os.replace(tmp_path/'p', tmp_path/'p.old')                     # as when the power fails while a new one takes its place
    with pytest.raises(Refused, match='is being packed, or was when something ended it: the same sagan_pack command goes on'): open_source(tmp_path/'p', 16)
    (tmp_path/'link').symlink_to(tmp_path/'p')
    with pytest.raises(Refused, match='is a link'): pack(d, 16, tmp_path/'link')
    assert len(pack(d, 16, tmp_path/'p')) == len(pack(d, 16, tmp_path/'p')) == 20


def test_the_cache_removes_its_own_folders_alone(tmp_path):
    long_ago = time.time() - 30*24*3600
    for name in ('fake-faces', 'fake-0123456789abcdef', 'my-downloads', 'real-0123456789abcdef'):
        (tmp_path/name).mkdir()
        (tmp_path/name/'a.part').write_text('')
        os.utime(tmp_path/name/'a.part', (long_ago,)*2), os.utime(tmp_path/name, (long_ago,)*2)
    (tmp_path/'fake-fedcba9876543210').mkdir()
    files.prune_cache(tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*.part')) == ['fake-faces/a.part', 'my-downloads/a.part']
    assert not (tmp_path/'fake-0123456789abcdef').exists() and all((tmp_path/o).exists() for o in ('fake-fedcba9876543210', 'real-0123456789abcdef'))


@pytest.fixture(scope='module')
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('small')
    d = tree(folder/'d')
    source = open_source(d, 32)
    runs.train(replace(at_scale(PRESETS['t1_attn_16'], 'smoke'), data=str(d), data_id=source.fingerprint, n_classes=2, steps=4, checkpoint_every=2), source, folder/'run')
    return folder/'run'


def resume(run, steps):
    cfg = replace(runs.settings_of(run), steps=steps)
    return runs.train(cfg, open_source(cfg.data, 32), run, resume=True)


def test_a_name_that_is_not_utf8_is_said_to_be_that(small_run, tmp_path, monkeypatch):
    "Not to be damage: torch and safetensors cannot open such a path, and nothing is trained into one."
    strange = tmp_path/os.fsdecode(b'caf\xe9')
    shutil.copytree(small_run, strange/'run')
    for read in (lambda: door.open_run(strange/'run'), lambda: resume(strange/'run', 6), lambda: runs.train(runs.settings_of(small_run), open_source('toy', 32), strange/'new'),
                 lambda: export(small_run, out=str(strange/'w.safetensors')), lambda: files.read_arrays(strange/'w.npz')):
        with pytest.raises(Refused, match='is not UTF-8.*rename it'): read()
    with pytest.raises(Refused, match='is not UTF-8'): files.write_cache(strange/'x.safetensors', dict(x=torch.ones(1)))
    assert sorted(p.name for p in strange.iterdir()) == ['run']


@pytest.mark.skipif(os.name != 'posix', reason='asks a POSIX shell')
@pytest.mark.parametrize('name', ['plain', 'two words', "it's", '$HOME', 'new\nline', 'esc\x1b[2J', "\x1b'\\", os.fsdecode(b'\xff\x07'), 'caf\xe9', '\u202etxt'])
def test_a_command_to_paste_is_harmless_to_see_and_means_the_same_name(name):
    words = options.quoted(name)
    assert words.isprintable() or name == 'new\nline' and words == "$'new\\x0aline'"
    assert subprocess.run(['bash', '-c', f'printf %s {words}'], capture_output=True).stdout == os.fsencode(name)


def test_weights_of_others_are_held_to_the_checksums_of_their_zip(small_run, tmp_path):
    "torch.load does not look at them. Where torch was told to write none, none is asked for."
    state = {k: v.contiguous() for k, v in door.open_run(small_run).D.state_dict().items()}
    torch.save(state, tmp_path/'d.pth')
    old = torch.load(sorted((small_run/'checkpoints').glob('step_*.pt'))[-1], weights_only=True)
    torch.save(old, tmp_path/'old.pt')
    reads = {'d.pth': files.read_arrays, 'old.pt': checkpoints.read_checkpoint}
    for name, read in reads.items():
        read(tmp_path/name)
        content = bytearray((tmp_path/name).read_bytes())
        with zipfile.ZipFile(tmp_path/name) as z: biggest = max(z.infolist(), key=lambda o: o.file_size)
        content[biggest.header_offset + biggest.file_size // 2] ^= 4
        (tmp_path/name).write_bytes(content)
        torch.load(tmp_path/name, weights_only=True)
        with pytest.raises(Refused, match='is damaged: its part .* does not fit its checksum'): read(tmp_path/name)
    if not hasattr(torch.serialization, 'set_crc32_options'): return
    torch.serialization.set_crc32_options(False)
    try: torch.save(state, tmp_path/'d.pth')
    finally: torch.serialization.set_crc32_options(True)
    assert files.read_arrays(tmp_path/'d.pth')[0].keys() == state.keys()


def test_pictures_that_are_decoded_at_once_share_an_allowance():
    most, now, seen, lock = 10, [0], [], threading.Lock()
    allowance = pictures.Allowance(most)
    def decode(n):
        with allowance.share(n):
            with lock: now[0] += n; seen.append(now[0])
            time.sleep(.005)
            with lock: now[0] -= n
    with ThreadPoolExecutor(8) as pool: list(pool.map(decode, [3, 10, 1, 4, 6, 2, 10, 5]*3))
    assert len(seen) == 24 and max(seen) <= most and any(a > 6 for a in seen) and allowance.left == most


def test_other_peoples_parts_are_left_in_a_run(small_run, tmp_path):
    run = Path(shutil.copytree(small_run, tmp_path/'run'))
    for name in ('mine.part', 'pics.pack.part/images.npy', 'config.json.123.part'):
        (run/name).parent.mkdir(exist_ok=True)
        (run/name).write_text('precious')
    assert resume(run, 5).t == 5
    assert sorted(p.name for p in run.glob('*.part')) == ['mine.part', 'pics.pack.part']


def test_a_run_writes_into_its_own_folder_alone(small_run, tmp_path):
    (tmp_path/'victim').mkdir()
    (tmp_path/'victim.txt').write_text('precious')
    for name, to in (('log.jsonl', 'victim.txt'), ('samples', 'victim'), ('.lock', 'victim.txt'), ('checkpoints/step_0000005.pt', 'victim.txt')):
        run = Path(shutil.copytree(small_run, tmp_path/name.replace('/', '-')))
        if (run/name).is_dir(): shutil.rmtree(run/name)
        (run/name).unlink(missing_ok=True)
        (run/name).symlink_to(tmp_path/to)
        with pytest.raises(Refused, match='is a link'): resume(run, 5)
    assert (tmp_path/'victim.txt').read_text() == 'precious' and not [*(tmp_path/'victim').iterdir()]
    (tmp_path/'elsewhere').symlink_to(shutil.copytree(small_run, tmp_path/'real'))        # a run may lie elsewhere as a whole
    assert resume(tmp_path/'elsewhere', 5).t == 5


@pytest.mark.parametrize('name', ['checkpoints/step_0000009.pt', 'data.json', 'config.json', 'log.jsonl', 'samples/step_0000009.png'])
def test_a_pipe_is_no_file(name, small_run, tmp_path):
    run = Path(shutil.copytree(small_run, tmp_path/'run'))
    (run/name).unlink(missing_ok=True)
    os.mkfifo(run/name)
    read = dict(data=lambda: door.open_run(run).classes, config=lambda: runs.stored_settings(run), log=lambda: runs.read_log(run/'log.jsonl'), step_0000009=lambda: (door.open_run(run), runs.kept_samples(run)))[Path(name).stem]
    if name.endswith('.pt'):
        with pytest.warns(Warning, match='pipe or device|a pipe,'): read()
    else:
        with pytest.raises(Refused, match='pipe or device|a pipe,'): read()


def test_copies_beside_checkpoints_and_samples_are_passed_over(small_run, tmp_path):
    run = Path(shutil.copytree(small_run, tmp_path/'run'))
    shutil.copy(run/'checkpoints'/'step_0000004.pt', run/'checkpoints'/'step_0000004 (1).pt')
    grid = next((run/'samples').glob('*.png'))
    shutil.copy(grid, grid.with_name(f'{grid.stem} (1).png'))
    assert door.open_run(run).step == 4 and len(runs.kept_samples(run)) == 1 and resume(run, 5).t == 5


def changed(small_run, to, **own):
    "A run whose checkpoint holds something else, under a hash of its own."
    from sagan_nb.machinery.checkpoints import read_checkpoint, sealed
    state = dict(read_checkpoint(small_run/'checkpoints'/'step_0000004.pt'))
    config = {k: v for k, v in own.items() if k in json.loads(state['config']) and not callable(v)}
    state |= {k: v(state[k]) if callable(v) else v for k, v in own.items() if k not in config}
    if config: state['config'] = json.dumps(json.loads(state['config']) | config)
    (to/'checkpoints').mkdir(parents=True)
    (to/'checkpoints'/'step_0000004.pt').write_bytes(sealed(state))
    return to


@pytest.mark.parametrize('own', [dict(n_classes=2**31), dict(n_classes=2_000_000), dict(width=512, z_dim=20_000), dict(width=2), dict(res=64), dict(G={}), dict(G=[1]), dict(sampling=[1]), dict(sampling=None), dict(t='x'),
    dict(config=None), dict(config=5), dict(G=lambda g: g | {'conv.bias': torch.zeros(3).to_sparse()}), dict(D=lambda d: {k: v for k, v in d.items() if 'linear' not in k})], ids=lambda o: '-'.join(o))
def test_a_checkpoint_whose_parts_do_not_fit_is_refused_before_memory_is_taken(own, small_run, tmp_path):
    run, before = changed(small_run, tmp_path/'run', **own), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused): door.open_run(run).classes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000                     # KiB


def test_weights_that_are_not_finite_are_refused(small_run, tmp_path):
    nan = lambda o: {k: torch.full_like(v, torch.nan) if v.dim() == 4 else v for k, v in o.items()}
    with pytest.raises(Refused, match='G[.].* holds numbers that are not finite'): door.open_run(changed(small_run, tmp_path/'run', G=nan))


@pytest.mark.parametrize('own', [dict(rng=None), dict(rng=lambda r: r[:5]), dict(data=lambda o: None), dict(data=lambda o: {'t': 10**30}), dict(opt_g={}), dict(t=-5)], ids=lambda o: '-'.join(o))
def test_a_checkpoint_to_go_on_from_must_be_whole(own, small_run, tmp_path):
    run = Path(shutil.copytree(small_run, tmp_path/'run'))
    shutil.copy(changed(small_run, tmp_path/'other', **own)/'checkpoints'/'step_0000004.pt', run/'checkpoints')
    (run/'checkpoints'/'step_0000002.pt').unlink()
    with pytest.raises(Refused): resume(run, 5)


def test_arrays_that_unpack_to_a_thousand_times_are_refused(tmp_path):
    np.savez_compressed(tmp_path/'a.npz', **{'linear.weight': np.zeros((1 << 25,), np.float32)})
    np.savez_compressed(tmp_path/'b.npz', x=np.zeros((40_000, 32, 32, 3), np.uint8))
    torch.save({'linear.weight': torch.zeros(1 << 25)}, tmp_path/'honest.pth')
    with zipfile.ZipFile(tmp_path/'honest.pth') as a, zipfile.ZipFile(tmp_path/'c.pth', 'w', zipfile.ZIP_DEFLATED) as b:
        for o in a.infolist(): b.writestr(o.filename, a.read(o))
    assert len(files.read_arrays(tmp_path/'honest.pth')[0]) == 1
    for read, name in ((files.read_arrays, 'a.npz'), (find_arrays, 'b.npz'), (files.read_arrays, 'c.pth')):
        with pytest.raises(Refused, match='would unpack to .* MiB'): read(tmp_path/name)


def test_other_pictures_in_the_old_place_are_not_taken_for_the_old_ones(small_run, tmp_path):
    cfg = runs.settings_of(small_run)
    other = tree(tmp_path/'d', n=13)
    with pytest.raises(Refused, match='other pictures than the run was trained on.*--data'): runs.pictures_of(replace(cfg, data=str(other)))
    assert len(runs.pictures_of(cfg, str(other))) == 26 and len(runs.pictures_of(cfg)) == 20
    with pytest.raises(Refused, match='say with --data'): runs.pictures_of(replace(cfg, data=''))             # of a published file


def test_a_run_is_not_measured_against_other_pictures_in_the_old_place(small_run):
    data = Path(runs.settings_of(small_run).data)
    (data/'a'/'more.png').write_bytes(encoded(seed=99))
    try:
        with pytest.raises(Refused, match='other pictures than the run was trained on.*--data'): drawing.open_measured(small_run, None, 'cpu')
        assert len(drawing.open_measured(small_run, str(data), 'cpu')[1]) == 21
    finally: (data/'a'/'more.png').unlink()
    assert len(drawing.open_measured(small_run, None, 'cpu')[1]) == 20


def test_samples_are_in_order_beyond_seven_digits(tmp_path):
    (tmp_path/'samples').mkdir()
    for t in (10_000_000, 20, 9_990_000): (tmp_path/'samples'/f'step_{t:07d}.png').touch()
    assert [*runs.sample_files(tmp_path)] == [20, 9_990_000, 10_000_000]


# well-formed, and wrong inside

def small_generator(tmp_path):
    "A generator of pictures without classes, from a file."
    from sagan_nb.machinery.publish import save_pretrained
    from sagan_nb.networks import Generator
    torch.manual_seed(0)
    save_pretrained(Generator(res=32, width=4, attn_at=(16,)).eval(), tmp_path/'g.safetensors')
    return door.open_run(tmp_path/'g.safetensors')


def interrupted(monkeypatch, model, out, batches=2):
    "Begin to write 25 pictures, ten at a time, and stop after some."
    real, left = many.draw, [None]*batches
    def failing(*args):
        if not left: raise KeyboardInterrupt
        left.pop()
        return real(*args)
    monkeypatch.setattr(many, 'TOGETHER', 10)
    monkeypatch.setattr(many, 'draw', failing)
    with pytest.raises(KeyboardInterrupt): many.write_many(model, [0], 25, out)
    monkeypatch.setattr(many, 'draw', real)


@pytest.mark.parametrize('name,damage', [
    ('done.txt', lambda b: b''), ('done.txt', lambda b: b'\xff\xfe'), ('done.txt', lambda b: b'1'*5000), ('images.npy', lambda b: b''), ('images.npy', lambda b: b[:60]),
    ('images.npy', lambda b: b[:-1]), ('images.npy', lambda b: b[:9000]), ('images.npy', lambda b: b'PK' + b[2:]), ('images.npy', lambda b: b.replace(b'(25, ', b'(24, ')),
    ('images.npy', lambda b: b.replace(b"'|u1'", b"'|i1'")), ('images.npy', lambda b: b.replace(b"'|u1'", b"'|O8'"))])
def test_half_an_array_of_pictures_is_made_again(tmp_path, monkeypatch, name, damage):
    "A short array must not be made longer: what it lacks would be black, and said to be there."
    model = small_generator(tmp_path)
    interrupted(monkeypatch, model, tmp_path/'o.npz')
    write_many(model, [0], 25, tmp_path/'whole.npz')
    path = tmp_path/'o.npz.part'/name
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    write_many(model, [0], 25, tmp_path/'o.npz')
    with np.load(tmp_path/'o.npz') as a, np.load(tmp_path/'whole.npz') as b: assert np.array_equal(a['arr_0'], b['arr_0'])
    assert not (tmp_path/'o.npz.part').exists()


def test_what_is_done_is_written_whole(tmp_path, monkeypatch):
    "A kill while done.txt is written leaves the old one."
    model = small_generator(tmp_path)
    interrupted(monkeypatch, model, tmp_path/'o.npz', 1)
    write = Path.write_text
    def cut(self, text, **how):
        if not self.name.startswith('done.txt'): return write(self, text, **how)
        write(self, '', **how)
        raise KeyboardInterrupt
    monkeypatch.setattr(Path, 'write_text', cut)
    with pytest.raises(KeyboardInterrupt): write_many(model, [0], 25, tmp_path/'o.npz')
    assert (tmp_path/'o.npz.part'/'done.txt').read_text() == '10'


@pytest.mark.parametrize('content', [b'', b'\xff\xfe{', b'{', b'[]'])
@pytest.mark.parametrize('out', ['o.npz', 'o'])
def test_how_pictures_were_made_is_damaged(tmp_path, monkeypatch, out, content):
    model = small_generator(tmp_path)
    interrupted(monkeypatch, model, tmp_path/out)
    place = tmp_path/('o.npz.part' if out == 'o.npz' else 'o')
    (place/'about.json').write_bytes(content)
    with pytest.raises(Refused, match='about.json is damaged .*: delete .*, or choose another --out'): write_many(model, [0], 25, tmp_path/out)


def test_a_kill_before_anything_was_drawn(tmp_path):
    (tmp_path/'o').mkdir()
    (tmp_path/'o'/'about.json.17.part').write_text('{')
    assert '3 pictures' in write_many(small_generator(tmp_path), [0], 3, tmp_path/'o')


def test_a_picture_that_is_not_whole_is_drawn_again(tmp_path, monkeypatch):
    "Empty, cut anywhere, a wrong byte, another size, something else."
    monkeypatch.setattr(many, 'TOGETHER', 1)
    model, out = small_generator(tmp_path), tmp_path/'o'
    many.write_many(model, [0], 9, out)
    whole = {p: p.read_bytes() for p in sorted(out.rglob('*.png'))}
    first, wrong = [*whole.values()][0], bytearray([*whole.values()][4])
    wrong[len(wrong) // 2] ^= 1
    bad = [b'', first[:40], first[:len(first) // 2], first[:-1], bytes(wrong), encoded(16, 16), encoded(32, 32, 'JPEG')]
    for path, content in zip(whole, bad): path.write_bytes(content)
    drawn, real = [], many.draw
    monkeypatch.setattr(many, 'draw', lambda *args: drawn.append(1) or real(*args))
    many.write_many(model, [0], 9, out)
    assert {p: p.read_bytes() for p in sorted(out.rglob('*.png'))} == whole and len(drawn) == len(bad) and not [*out.rglob('*.part')]


LINE = dict(t=1, loss_d=1., loss_g=1., d_real=1., d_fake=-1., seconds_per_step=1., wait_share=0.)


def write_lines(path, *lines):
    "A log without hashes."
    path.write_text(''.join(json.dumps(o) + '\n' for o in lines))


def test_lines_of_a_log_that_lack_something(tmp_path):
    "They are left out where their numbers are needed."
    from sagan_nb.machinery import ending, summary
    write_lines(tmp_path/'log.jsonl', LINE, dict(t=2), dict(LINE, t=3))
    write_lines(tmp_path/'curve.jsonl', dict(t=1), dict(t=2, diversity=.5, distance=1.), dict(t=3, diversity=.1, distance=1., collapse=[dict(sign='diversity', t=3, words='it fell')]))
    cfg, log = PRESETS['t1_none'], runs.read_log(tmp_path/'log.jsonl')
    assert 'diversity at step 3' in summary.say_collapse(tmp_path, cfg, log) and len(log) == 3
    ending.write_curves(SimpleNamespace(cfg=cfg), None, tmp_path)
    assert (tmp_path/'curves.png').exists()
    write_lines(tmp_path/'log.jsonl', dict(t=1))
    write_lines(tmp_path/'curve.jsonl', dict(t=1))
    assert summary.say_collapse(tmp_path, cfg, runs.read_log(tmp_path/'log.jsonl')).startswith('Unknown')


def test_lines_of_a_curve_that_lack_something(tmp_path):
    "A run that goes on looks at the lines before."
    from sagan_nb.machinery.curve import Curve
    from sagan_nb.machinery.guard import Guard
    write_lines(tmp_path/'log.jsonl', dict(t=1), dict(t=2))
    write_lines(tmp_path/'curve.jsonl', dict(t=1), dict(t=2, diversity=1., distance=3.))
    (tmp_path/'checkpoints').mkdir()
    curve, line = SimpleNamespace(path=tmp_path/'curve.jsonl', run=tmp_path, real_diversity=1., steps=9), dict(t=3, diversity=.1, distance=2.)
    Curve.note_collapse(curve, line)
    assert [o['sign'] for o in line['collapse']] == ['diversity']
    Guard(curve, best=1).keep_best(2)


def test_whole_numbers_that_no_float_holds(tmp_path):
    from sagan_nb.machinery import evaluate, jobs
    for name, read, text in (('log.jsonl', lambda: runs.read_log(tmp_path/'log.jsonl'), '{"t": 1, "loss_d": %s}'), ('metrics.json', lambda: evaluate.run_scores(tmp_path), '[{"metric": "a", "value": 1, "real": %s}]'),
                             ('t1_none-s0-a-v2.json', lambda: jobs.collect(tmp_path), '{"records": [{"metric": "a", "value": %s}]}')):
        for n in (309, 400):
            (tmp_path/name).write_text(text % ('-' + '9'*n))
            with pytest.raises(Refused, match=f'{name}.* is damaged .a number in it is too long'): read()
    (tmp_path/'log.jsonl').write_text('{"t": 1, "loss_d": %s, "d_real": NaN}' % ('9'*308))
    assert float(runs.read_log(tmp_path/'log.jsonl')[0]['loss_d']) == 1e308


@pytest.mark.parametrize('wrong', [dict(action='explode'), dict(action=['go']), dict(action=None), dict(good='low'), dict(good=[1]), dict(good=True), dict(words=3), dict(t='1'), None], ids=str)
def test_an_incident_that_is_none(tmp_path, wrong):
    from sagan_nb.machinery.guard import incidents
    from sagan_nb.machinery.report import incidents_html
    good = dict(t=1, words='a \x1b[2J sign', action='back', good=None)
    write_lines(tmp_path/'incidents.jsonl', good, good if wrong is None else good | wrong)
    if wrong is None:
        assert incidents(tmp_path)[1]['words'] == r'a \x1b[2J sign'
        write_lines(tmp_path/'incidents.jsonl', dict(t=1))
    with pytest.raises(Refused, match='incidents.jsonl is damaged .no incident: .*: delete this line') as e: incidents_html(tmp_path)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('wrong', [dict(metric=['a']), dict(metric=3), dict(metric=None), dict(value=[1]), dict(value={}), dict(real=[1]), dict(splits=[1]), dict(step={}), dict(features_hash=[])], ids=str)
def test_a_score_that_is_none(tmp_path, wrong):
    "It is named; new numbers are not lost to it."
    from sagan_nb.machinery import evaluate, report, summary
    path, good = tmp_path/'metrics.json', dict(metric='diversity', value=1., real=2., splits=1, step=4)
    path.write_text(json.dumps([good, good | wrong]))
    with pytest.raises(Refused, match='metrics.json is damaged'): evaluate.run_scores(tmp_path)
    assert 'is damaged' in summary.say_scores(tmp_path) and 'is damaged' in report.metrics_html(tmp_path)
    with pytest.warns(UserWarning, match='kept as metrics.json.bad'): assert evaluate.save_records(path, [good]) == [good]
    assert evaluate.run_scores(tmp_path) == [good] and (tmp_path/'metrics.json.bad').exists()


RECORD = dict(metric='diversity', value=1., real=2., features='pixels', features_hash='')
LOOK = dict(t=1, distance=1., diversity=1.)
RESULT = dict(row='t1_none', seed=0, scale='smoke', name='t1_none-s0-a-v2', status='finished', numerics=2, env=dict(commit=None), went_on=[dict(commit=None)], config=dict(attn_at=[]),
              parameters=dict(G=1, D=2), records=[RECORD], curve=[LOOK], collapse=[dict(t=1, sign='jump', words='')], seconds_per_step=None)


@pytest.mark.parametrize('key,value', [
    *(('records', [RECORD | o]) for o in (dict(value='x'), dict(value=None), dict(value=[]), dict(value=True), dict(real='x'), dict(metric=[]), dict(features=None), dict(features_hash=[]), dict(splits={}))),
    ('records', [5]), ('curve', [dict(t=1)]), ('curve', [5]), ('curve', [LOOK | dict(t='1')]), ('curve', [LOOK | dict(mi='x')]), ('curve', [LOOK, LOOK | dict(t=2, mi=1.)]), ('collapse', [dict(t=1)]), ('collapse', [dict(sign='jump')]),
    ('collapse', [dict(t=1, sign=5)]), ('went_on', [5]), ('went_on', None), ('parameters', dict(G='x')), ('seconds_per_step', 'x'), ('samples_at', 5)], ids=str)
def test_a_result_that_is_wrong_inside(tmp_path, key, value):
    "Its hash is right: a stranger can compute it."
    from sagan_nb.machinery.files import write_json
    from sagan_nb.machinery.jobs import collect
    path = tmp_path/'t1_none-s0-a-v2.json'
    write_json(path, RESULT)
    assert collect(tmp_path) == [RESULT]
    write_json(path, RESULT | {key: value})
    with pytest.raises(Refused, match=f'{path.name} is damaged .{key} .*: delete it'): collect(tmp_path)


def test_words_of_a_result_do_nothing(tmp_path):
    "Neither on a page nor in a terminal, wherever in the file they stand."
    from sagan_nb.machinery.files import write_json
    from sagan_nb.machinery.jobs import collect
    from sagan_nb.machinery.tables import markdown
    evil = '<script>alert(1)</script> \x1b[2J'
    write_json(tmp_path/'t1_none-s0-a-v2.json', RESULT | dict(status=evil, scale='smoke', collapse=[dict(t=1, sign=evil, words=evil)], env={k: evil for k in ('commit', 'device_name', 'cpu', 'threads', 'torch')},
               records=[RECORD | dict(features=evil, features_hash=evil, data=evil, data_id=evil, batch_norm=evil, n_fake=evil, n_real=evil)],
               config={k: evil for k in ('scale', 'width', 'batch', 'steps', 'precision', 'lr_factor', 'ema')} | dict(attn_at=[], res=32, n_classes=4)))
    text = markdown('table1', collect(tmp_path), skipped={})
    assert text.count('&lt;script>') > 10 and '<script' not in text and '\x1b' not in text and r'\x1b[2J' in text


def test_a_line_that_a_crash_cut_off_is_left_out_wherever_it_was_cut(tmp_path):
    "Also right behind an inner brace. What is whole and wrong is named."
    path, line = tmp_path/'log.jsonl', json.dumps(dict(t=20, usage_G={'16': {'share': .5}}, names=['a', {'b': 1}]))
    for i in range(1, len(line)):
        path.write_text(f'{line[:i]}\n{line}\n')
        assert files.read_lines(path) == [json.loads(line)], line[:i]
    for wrong in ('[', '[20', ' ', '{"t": 20,}', '{"t": 20}}', '[20]', '{t: 20}'):
        path.write_text(f'{wrong}\n')
        with pytest.raises(Refused, match='line 1 is damaged'): files.read_lines(path)
