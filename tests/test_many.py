"Single pictures out: folders by class and .npz, resumed after an interruption, refused where something else is."
import errno
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from commands import shell
from sagan_nb.core import Refused
from sagan_nb.data import open_source
from sagan_nb.machinery import many
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.many import folder_names, goes_to_many, write_many
from sagan_nb.machinery.publish import save_pretrained
from sagan_nb.networks import Generator


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp('weights')
    save_pretrained(Generator(res=32, width=4, n_classes=12, attn_at=(16,)).eval(), place/'g.safetensors')
    return open_run(place/'g.safetensors')


@pytest.fixture(autouse=True)
def few(monkeypatch): monkeypatch.setattr(many, 'TOGETHER', 10)


def test_folder_and_array_hold_the_same(model, tmp_path):
    wanted = [0, 3, 11]
    assert '23 pictures' in write_many(model, wanted, 23, tmp_path/'d')
    write_many(model, wanted, 23, tmp_path/'a.npz')
    with np.load(tmp_path/'a.npz') as f: x, y, names = f['arr_0'], f['arr_1'], f['classes']
    assert x.shape == (23, 32, 32, 3) and x.dtype == np.uint8 and y.tolist() == [wanted[i % 3] for i in range(23)]
    s = open_source(tmp_path/'d', res=32)
    assert s.classes == ['00', '03', '11'] and s.counts == [8, 8, 7] and not list(tmp_path.glob('*.part'))
    assert names.tolist() == model.classes and open_source(tmp_path/'a.npz', res=32).classes == ['0', '3', '11']
    for i in (0, 11, 22): assert np.array_equal(np.asarray(Image.open(tmp_path/'d'/f'{y[i]:02}'/f'{i:06}.png')), x[i])
    assert len({o.tobytes() for o in x}) == 23


@pytest.mark.skipif(not hasattr(os, 'posix_fallocate'), reason='this system takes space on a disk only as it is written')
def test_a_disk_without_room_is_found_before_anything_is_drawn(model, tmp_path, monkeypatch):
    "A map into memory that finds none later ends the process by a signal."
    asked = []
    def full(f, start, size):
        asked.append(size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, 'posix_fallocate', full)
    monkeypatch.setattr(many, 'draw', lambda *args: pytest.fail('it drew'))
    for _ in range(2):                                           # the second time the file is there, of its full length and empty
        with pytest.raises(OSError) as e: write_many(model, [0], 23, tmp_path/'a.npz')
        assert e.value.errno == errno.ENOSPC and e.value.filename.endswith('images.npy')
    assert len(asked) == 2 and min(asked) > 23*32*32*3


@pytest.mark.parametrize('out', ['d', 'a.npz'])
def test_goes_on_where_it_stopped(model, tmp_path, monkeypatch, out):
    "The third batch fails: the first two are not drawn again, and the result is that of an undisturbed run."
    real, drawn = many.draw, []
    def failing(*args):
        drawn.append(1)
        if len(drawn) == 3: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(many, 'draw', failing)
    with pytest.raises(KeyboardInterrupt): write_many(model, [1, 2], 33, tmp_path/out)
    assert not (tmp_path/'a.npz').exists()
    write_many(model, [1, 2], 33, tmp_path/out)
    assert len(drawn) == 3 + 2
    monkeypatch.setattr(many, 'draw', real)
    write_many(model, [1, 2], 33, tmp_path/f'again_{out}')
    if out == 'a.npz':
        a, b = (np.load(tmp_path/o)['arr_0'] for o in (out, f'again_{out}'))
        assert np.array_equal(a, b)
    else:
        names = sorted(p.relative_to(tmp_path/out) for p in (tmp_path/out).rglob('*.png'))
        assert len(names) == 33 and all((tmp_path/out/o).read_bytes() == (tmp_path/f'again_{out}'/o).read_bytes() for o in names)


def test_a_longer_call_adds_to_a_folder(model, tmp_path):
    write_many(model, [0, 1], 3, tmp_path/'d')
    first = {p: p.read_bytes() for p in (tmp_path/'d').rglob('*.png')}
    write_many(model, [0, 1], 11, tmp_path/'d')
    assert len([*(tmp_path/'d').rglob('*.png')]) == 11 and all(p.read_bytes() == o for p, o in first.items())
    with pytest.raises(Refused, match='another generator, seed'): write_many(model, [0, 1], 11, tmp_path/'d', seed=1)
    (tmp_path/'other').mkdir()
    (tmp_path/'other'/'mine.txt').write_text('mine')
    with pytest.raises(Refused, match='something else'): write_many(model, [0], 5, tmp_path/'other')
    assert json.loads((tmp_path/'d'/'about.json').read_text())['classes'] == [0, 1]


def test_names_of_folders_sort_as_the_classes():
    assert folder_names(['a b', 'c']) == ['a b', 'c'] and folder_names([]) == []
    assert folder_names(['Cardigan', 'cardigan']) == ['0_Cardigan', '1_cardigan'] and folder_names(['cat', 'con.1', 'nul']) == ['0_cat', '1_con_1', '2_nul']
    assert folder_names([str(k) for k in range(12)]) == [f'{k:02}' for k in range(12)]
    for odd in (['b', 'a'], ['../x', 'y'], ['a/b', 'c'], ['CON.', 'x'], ['a', 'a']):
        names = folder_names(odd)
        assert names == sorted({*names}) and len(names) == 2 and not any('/' in n or '.' in n for n in names)


def test_the_command(model, tmp_path, monkeypatch, capsys):
    save_pretrained(model.G, tmp_path/'g.safetensors')
    run = lambda *args: shell(monkeypatch, capsys, 'sagan_sample', tmp_path/'g.safetensors', *args)
    code, out, _ = run('--n', 20, '--classes', '1,2', '--out', f'{tmp_path}/d/')
    assert code == 0 and '20 pictures' in out and len([*(tmp_path/'d').rglob('*.png')]) == 20
    assert run('--n', 7, '--out', tmp_path/'x.npz')[0] == 0 and np.load(tmp_path/'x.npz')['arr_0'].shape == (7, 32, 32, 3)
    code, _, err = run('--n', 7, '--out', tmp_path/'x.npz')
    assert code == 1 and 'is there already' in err
    code, _, err = run('--n', 7, '--kind', 'z', '--out', f'{tmp_path}/d/')
    assert code == 1 and 'makes one picture' in err
    code, _, err = run('--n', 20_000, '--out', tmp_path/'x.png')
    assert code == 1 and 'DIR/' in err and goes_to_many(tmp_path) and not goes_to_many('x.png')
