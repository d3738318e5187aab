"Public data sets by name: torchvision's own loaders on small files in its layouts, and what is said without a network."
import gzip
import hashlib
import pickle
import sys
import types
import urllib.error
import urllib.request

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

from sagan_nb.core import Refused
from sagan_nb.data import open_source
from sagan_nb.machinery.named import data_folder, is_named
from sagan_nb.machinery.packs import pack


def md5(path): return hashlib.md5(path.read_bytes()).hexdigest()


def noise(*shape, seed=0): return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def root(tmp_path, monkeypatch):
    "An empty cache, and no network."
    def offline(*args, **kwargs): raise urllib.error.URLError('no network')
    monkeypatch.setenv('SAGAN_NB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(urllib.request, 'urlopen', offline)
    data_folder().mkdir(parents=True)
    return data_folder()


def write_cifar(root, monkeypatch, fine=False):
    "CIFAR in its own layout, twelve pictures; its hashes in place of the published ones."
    kind, folder = (datasets.CIFAR100, root/'cifar-100-python') if fine else (datasets.CIFAR10, root/'cifar-10-batches-py')
    folder.mkdir()
    names, key = [f'kind{k}' for k in range(3)], 'fine_labels' if fine else 'labels'
    def write(name, value):
        (folder/name).write_bytes(pickle.dumps(value))
        return [name, md5(folder/name)]
    x = noise(12, 3072)
    train = write('train', {'data': x, key: [k % 3 for k in range(12)]})
    test = write('test', {'data': x[:4], key: [0, 1, 2, 0]})
    meta = write('meta', {kind.meta['key']: names})
    for name, value in dict(train_list=[train], test_list=[test], meta=dict(kind.meta, filename='meta', md5=meta[1])).items():
        monkeypatch.setattr(kind, name, value)
    return x.reshape(-1, 3, 32, 32)


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar(root, monkeypatch, name):
    x = write_cifar(root, monkeypatch, fine=name == 'cifar100')
    s = open_source(name, res=32)
    assert (s.classes, s.counts, s.spec) == (['kind0', 'kind1', 'kind2'], [4, 4, 4], name)
    assert torch.equal(s.batch(range(12))[0], torch.from_numpy(x))                          # bit for bit at 32 px
    assert len(open_source(f'{name}:test', res=32)) == 4 and open_source(name, res=16).batch([0])[0].shape[-1] == 16
    assert open_source(name, res=32, unlabelled=True).classes == []
    with pytest.raises(Refused, match='part of'): open_source(f'{name}:valid', res=32)
    with pytest.raises(Refused, match='give one'): open_source(name)


def test_a_named_set_is_packed(root, monkeypatch, tmp_path):
    write_cifar(root, monkeypatch)
    assert pack('cifar10', 32, tmp_path/'c.pack').fingerprint == open_source('cifar10', res=32).fingerprint


def test_a_damaged_file_and_none_at_all(root, monkeypatch):
    write_cifar(root, monkeypatch)
    (root/'cifar-10-batches-py'/'train').write_bytes(b'other')                              # never unpickled
    for name, words in (('cifar10', 'cifar-10-python.tar.gz (md5 '), ('mnist', 'train-images-idx3-ubyte.gz (md5 '),
                        ('svhn', 'train_32x32.mat (md5 '), ('stl10', 'stl10_binary.tar.gz (md5 '), ('celeba', 'list_attr_celeba.txt')):
        with pytest.raises(Refused) as e: open_source(name, res=32)
        assert words in str(e.value) and str(root) in str(e.value) and '\n' not in str(e.value), e.value


def idx(array): return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>i4').tobytes() + array.tobytes()


@pytest.mark.parametrize('name, kind', [('mnist', datasets.MNIST), ('fashion', datasets.FashionMNIST)])
def test_one_channel_becomes_three(root, monkeypatch, capsys, name, kind):
    "Archives put where the sentence says are unpacked and read."
    raw, x, made = root/kind.__name__/'raw', noise(10, 28, 28), []
    raw.mkdir(parents=True)
    for old, _ in kind.resources:
        content = idx(x) if 'images' in old else idx(np.arange(10, dtype=np.uint8))
        (raw/old).write_bytes(gzip.compress(content))
        made.append((old, md5(raw/old)))
    monkeypatch.setattr(kind, 'resources', made)
    s = open_source(name, res=32)
    assert len(s.classes) == 10 and s.labels.tolist() == [*range(10)] and 'repeated to three' in capsys.readouterr().out
    pixels = s.batch([3])[0][0]
    grown = np.asarray(Image.fromarray(x[3]).resize((32, 32), Image.BILINEAR))
    assert all(np.array_equal(channel, grown) for channel in pixels)


def test_svhn(root, monkeypatch):
    x = noise(32, 32, 3, 6)
    scipy.io.savemat(root/'train_32x32.mat', dict(X=x, y=np.array([[10], [1], [2], [3], [4], [5]])))
    monkeypatch.setitem(datasets.SVHN.split_list, 'train', ['', 'train_32x32.mat', md5(root/'train_32x32.mat')])
    with pytest.raises(Refused, match='no readable picture in class 6, 7, 8, 9'): open_source('svhn', res=32)
    scipy.io.savemat(root/'train_32x32.mat', dict(X=noise(32, 32, 3, 10), y=np.arange(1, 11)[:, None]))
    monkeypatch.setitem(datasets.SVHN.split_list, 'train', ['', 'train_32x32.mat', md5(root/'train_32x32.mat')])
    s = open_source('svhn', res=32)
    assert s.classes == [*'0123456789'] and s.labels.tolist() == [*range(1, 10), 0]          # its 10 is the digit 0


def test_stl10(root, monkeypatch):
    folder, x = root/'stl10_binary', noise(4, 3, 96, 96)
    folder.mkdir()
    for part in ('train', 'test', 'unlabeled'): (folder/f'{part}_X.bin').write_bytes(x.tobytes())
    for part in ('train', 'test'): (folder/f'{part}_y.bin').write_bytes(bytes([1, 2, 1, 2]))
    (folder/'class_names.txt').write_text('airplane\nbird\n')
    for name in ('train_list', 'test_list'):
        monkeypatch.setattr(datasets.STL10, name, [[f, md5(folder/f)] for f, _ in getattr(datasets.STL10, name)])
    s = open_source('stl10', res=96)
    assert s.classes == ['airplane', 'bird'] and torch.equal(s.batch([1])[0][0], torch.from_numpy(x[1].transpose(0, 2, 1).copy()))
    with pytest.raises(Refused, match='--unlabelled'): open_source('stl10:unlabeled', res=32)
    assert open_source('stl10:unlabeled', res=32, unlabelled=True).classes == []


def test_celeba(root, monkeypatch):
    folder, names = root/'celeba', [f'{i:06}.jpg' for i in range(1, 5)]
    (folder/'img_align_celeba').mkdir(parents=True)
    for i, name in enumerate(names): Image.fromarray(noise(218, 178, 3, seed=i)).save(folder/'img_align_celeba'/name)
    row = lambda *columns: ''.join(f'{n} {c}\n' for n, c in zip(names, columns))
    texts = dict(list_attr_celeba='4\nMale Smiling\n' + row('1 -1', '1 1', '-1 1', '-1 -1'), identity_CelebA=row(*'1234'),
                 list_bbox_celeba='4\nx y\n' + row(*['1 1']*4), list_landmarks_align_celeba='4\nx y\n' + row(*['1 1']*4),
                 list_eval_partition=row(*'0000'))
    for name, text in texts.items(): (folder/f'{name}.txt').write_text(text)
    known = [(a, md5(folder/n) if n.endswith('.txt') else b, n) for a, b, n in datasets.CelebA.file_list]
    monkeypatch.setattr(datasets.CelebA, 'file_list', known)
    s = open_source('celeba:Smiling', res=64)
    assert s.classes == ['not Smiling', 'Smiling'] and s.labels.tolist() == [0, 1, 1, 0]
    assert open_source('celeba', res=64, unlabelled=True).classes == []
    with pytest.raises(Refused, match='celeba:Smiling'): open_source('celeba', res=64)
    with pytest.raises(Refused, match="did you mean Smiling"): open_source('celeba:Smilling', res=64)


def test_a_folder_of_the_same_name_is_asked_about(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'mnist').mkdir()
    with pytest.raises(Refused, match='say ./mnist'): open_source('mnist', res=32)
    assert is_named('svhn:test') and is_named('hf:a/b') and not is_named('hf') and not is_named('photos') and not is_named('./mnist')


def test_hub_data(monkeypatch):
    "A stand-in for `datasets`: columns with features, rows by number."
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(Refused, match='pip install datasets'): open_source('hf:some/set', res=32)
    class ClassLabel: names = ['a', 'b']
    Image_ = type('Image', (), {})
    class Found(list):
        features = dict(text=object(), picture=Image_(), kind=ClassLabel())
        def __getitem__(self, k): return [o['kind'] for o in self] if k == 'kind' else list.__getitem__(self, k)
    def load_dataset(name, split):
        if name == 'gone': raise FileNotFoundError('not there')
        return Found(dict(picture=Image.fromarray(noise(40, 40, 3, seed=i)), kind=i % 2) for i in range(4 + 2*(split == 'test')))
    monkeypatch.setitem(sys.modules, 'datasets', types.SimpleNamespace(load_dataset=load_dataset))
    s = open_source('hf:some/set', res=32)
    assert s.classes == ['a', 'b'] and s.counts == [2, 2] and len(open_source('hf:some/set:test', res=32)) == 6
    with pytest.raises(Refused, match='cannot be loaded'): open_source('hf:gone', res=32)
    with monkeypatch.context() as m:
        m.setattr(ClassLabel, 'names', ['a\x1b[2J', 'b'])
        assert '\x1b' not in open_source('hf:some/set', res=32).classes[0]
        m.setattr(Found, '__getitem__', lambda self, k: [0, -1, None, 1] if k == 'kind' else list.__getitem__(self, k))
        with pytest.raises(Refused, match='pictures without a class: add --unlabelled'): open_source('hf:some/set', res=32)
    monkeypatch.setattr(Found, 'features', dict(text=object(), picture=Image_()))
    with pytest.raises(Refused, match='--unlabelled'): open_source('hf:some/set', res=32)
    monkeypatch.setattr(Found, 'features', dict(text=object()))
    with pytest.raises(Refused, match='no column of images'): open_source('hf:some/set', res=32, unlabelled=True)
