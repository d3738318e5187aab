"Edges: what a user types, a machine does or a network computes once in a while. Each was wrong before."
import errno
import math
import os
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

import start
from commands import as_folders, zoo_with_a_run
from sagan_nb.attention_maps import attention_maps, show_attention, silenced
from sagan_nb.blocks import Conv2d
from sagan_nb.core import Refused
from sagan_nb.data import Toy, Twins, seed_of
from sagan_nb.distributed import in_parts
from sagan_nb.metrics import kernel_distance, prdc
from sagan_nb.networks import Generator
from sagan_nb.report import walk_classes
from sagan_nb.spectral_norm import exact_sigma, make_layer, normalised, spectral_norm
from sagan_nb.machinery import answers, atomic, cli, files, group, pictures, probe, runs
from sagan_nb.machinery.atomic import atomic_write
from sagan_nb.machinery.checkpoints import Diverged, newest_checkpoint, read_checkpoint
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.evaluate import evaluate
from sagan_nb.machinery.features import domain, download_folder, inception
from sagan_nb.machinery.files import cache_folder, file_sha256
from sagan_nb.machinery.packs import pack
from sagan_nb.machinery.protocols import torchvision_inception
from sagan_nb.machinery.publish import save_pretrained
from sagan_nb.machinery.recipe import normalise_tables

SMALL = dict(res=32, width=4, n_classes=3, z_dim=8, attn_at=(8,))


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A folder with pictures and a run on them; an own cache."
    with zoo_with_a_run(tmp_path_factory.mktemp('edges')) as folder: yield folder


# Places

@pytest.mark.parametrize('command', [lambda out: cli.sagan_eval('run', out=out), lambda out: cli.sagan_bench(nets='small', out=out)], ids=['eval', 'bench'])
def test_a_folder_is_refused_as_a_file_and_stays(place, monkeypatch, command):
    monkeypatch.chdir(place)
    Path('mine').mkdir(exist_ok=True)
    with pytest.raises(Refused, match='is no file, but a folder'): command('mine')
    assert Path('mine').is_dir() and not Path('mine.bad').exists()


def test_a_taken_place_is_refused_before_pictures_are_read(place, monkeypatch):
    monkeypatch.setattr(cli, 'open_source', None)
    with pytest.raises(Refused, match='is there already'): cli.sagan_train('t1_attn_16', data=str(place/'zoo'), scale='smoke', out=str(place/'run'))


def test_the_readme_of_a_project_stays(place, tmp_path):
    readme = tmp_path/'README.md'
    readme.write_text('# Mine\n')
    with pytest.raises(Refused, match='is not of a published network'): cli.sagan_export(str(place/'run'), out=str(tmp_path))
    assert readme.read_text() == '# Mine\n' and [*tmp_path.iterdir()] == [readme]
    readme.unlink()
    for _ in range(2): cli.sagan_export(str(place/'run'), out=str(tmp_path))
    assert readme.read_text().startswith('# Generator of a Self-Attention GAN')


def test_a_pack_stays_until_the_new_one_opens(tmp_path):
    as_folders(Toy(32, 3, n=90), tmp_path/'zoo')
    pack(tmp_path/'zoo', 32, tmp_path/'p')
    was, (first, *others) = (tmp_path/'p'/'pack.json').read_bytes(), (tmp_path/'zoo'/'2').iterdir()
    for path in others: path.unlink()
    first.write_text('no picture')
    with pytest.raises(Refused, match='no readable picture in class 2'): pack(tmp_path/'zoo', 32, tmp_path/'p', max_bad=.1)
    assert (tmp_path/'p'/'pack.json').read_bytes() == was


def test_a_checkpoint_elsewhere_reads_no_strangers_files(place, tmp_path):
    (tmp_path/'models').mkdir()
    shutil.copy(newest_checkpoint(place/'run'), tmp_path/'models'/'best.pt')
    for name in ('data.json', 'env.json'): (tmp_path/name).write_text('{"device_name": "theirs"}')
    model = open_run(tmp_path/'models'/'best.pt')
    assert model.classes == ['0', '1', '2'] and model.about['device'] is None


def test_paths_of_start_hold_where_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('cats', 'toy'): Path(name).mkdir()
    here = str(tmp_path)
    assert start.absolute(['--data=cats', '--out', 'x']) == ['--data', f'{here}/cats', '--out', f'{here}/x']
    assert start.absolute(['--data', 'toy', '--init', 'mmgen:imagenet', '--set=width=8']) == ['--data', 'toy', '--init', 'mmgen:imagenet', '--set', 'width=8']


def test_a_home_may_be_named_or_missing(monkeypatch):
    monkeypatch.setenv('SAGAN_NB_CACHE', '~/mine')
    assert cache_folder() == Path.home()/'mine'
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: '~/.cache/torch/hub')
    with pytest.raises(Refused, match='TORCH_HOME'): download_folder()


def test_a_page_of_maps_has_every_layer(place, tmp_path):
    save_pretrained(Generator(**SMALL | dict(attn_at=(8, 16))), tmp_path/'g.safetensors')
    for layers, shown in (('all', ['8', '16']), ('8', ['8'])):
        cli.sagan_attention(str(tmp_path/'g.safetensors'), layers=layers, n=1, out=str(tmp_path/'maps.html'))
        assert re.findall(r'<h2>Map (\d+)</h2><div id="look-', (tmp_path/'maps.html').read_text()) == shown


def test_a_plan_counts_rows_that_are_stated_once():
    assert [answers.planned(name) for name in ('photographs', 'fig3_photographs', 'photographs_64')] == [9, 10, 6]


# The machine

def test_memory_that_ran_out_is_not_called_damage(place, monkeypatch):
    def load(*args, **kwargs): raise MemoryError
    monkeypatch.setattr(torch, 'load', load)
    with pytest.raises(MemoryError): read_checkpoint(newest_checkpoint(place/'run'))
    monkeypatch.setattr(files, 'read_safetensors', load)
    (place/'w.safetensors').touch()
    with pytest.raises(MemoryError): files.read_arrays(place/'w.safetensors')


@pytest.mark.parametrize('number, fails', [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_may_sync_no_folders(tmp_path, monkeypatch, number, fails):
    sync = os.fsync
    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode): raise OSError(number, os.strerror(number))
        sync(fd)
    monkeypatch.setattr(atomic.os, 'fsync', fsync)
    def write():
        with atomic_write(tmp_path/'a') as part: part.write_text('x')
    if fails:
        with pytest.raises(OSError): write()
    else: write()
    assert (tmp_path/'a').read_text() == 'x'


@pytest.mark.parametrize('name, text', [('SAGAN_NB_TIMEOUT', 'inf'), ('SAGAN_NB_TIMEOUT', 'nan'), ('LOCAL_RANK', 'x')])
def test_numbers_of_the_environment(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    with pytest.raises(Refused, match=name): group.patience() + group.local_rank()


def test_threads_are_divided_by_what_is_a_number(monkeypatch):
    for mates in ('', '0', 'x'):
        monkeypatch.setenv('LOCAL_WORLD_SIZE', mates)
        assert pictures.threads_to_use() >= 1


def test_a_share_is_exact():
    "29 of 100 are 29 %, although .29*100 is less than 29."
    pictures.check_bad({str(k): 'cut' for k in range(29)}, 100, .29)
    with pytest.raises(Refused, match='the limit is 29%'): pictures.check_bad({str(k): 'cut' for k in range(30)}, 100, .29)


def test_signals_act_as_usual_once_all_is_saved():
    import signal
    stop = runs.StopOnSignal('')
    assert signal.getsignal(signal.SIGINT) == stop.ask
    stop.end()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize('words', [('--every', '0'), ('--updates', '0'), ('--batch', '1'), ('--data', 'zoo')])
def test_a_probe_that_cannot_be(place, monkeypatch, tmp_path, words):
    monkeypatch.chdir(place)
    with pytest.raises(Refused, match='or more|no parts that must agree'): probe.main(['--out', str(tmp_path), '--rows', 't1_none', '--seeds', '0', *words])
    assert not [*tmp_path.glob('*.json')]


# Networks

def test_what_is_not_a_number_is_not_measured(place):
    toy = Toy(32, 3, n=90)
    G = Generator(**SMALL).eval()
    with torch.no_grad(): G.conv.bias.fill_(math.nan)
    with pytest.raises(Diverged, match='not finite numbers'): evaluate(G, toy, ('distance',), domain(toy, None), 20, 20, cache=None)
    assert exact_sigma(torch.full((3, 4), math.nan)).isnan()


def test_weights_of_another_network(tmp_path):
    torch.save(dict(a=torch.zeros(2)), tmp_path/'other.pth')
    with pytest.raises(Refused, match='other weights'): inception(tmp_path/'other.pth', sha256=file_sha256(tmp_path/'other.pth'))
    with pytest.raises(Refused, match="not torchvision's Inception"): torchvision_inception(tmp_path/'other.pth')


def test_a_file_in_float64_draws(tmp_path):
    G = Generator(**SMALL).double()
    save_pretrained(G, tmp_path/'d.safetensors')
    made = open_run(tmp_path/'d.safetensors').G
    z, y = torch.randn(3, 8), torch.arange(3)
    assert made(z, y).dtype == torch.float64 and torch.equal(made(z, y), G.eval()(z.double(), y))


def test_class_tables_move_once_where_a_batch_comes_in_parts():
    whole, parts = (Generator(**SMALL, bn=dict(ghost=2), bn_last=dict(ghost=2)) for _ in range(2))
    for net in (whole, parts):
        for block in net.blocks.values():
            torch.nn.init.normal_(block.bn1.offset)
            normalise_tables(block.bn1, dim=1)
    parts.load_state_dict(whole.state_dict())
    z, y = torch.randn(4, 8), torch.arange(4) % 3
    names = [name for name, _, _ in normalised(whole)]
    assert 'blocks.8.bn1.gain' in names and 'blocks.8.bn1.offset' in names
    torch.testing.assert_close(in_parts(parts, 2, z, y), whole(z, y))
    for (name, a, _), (_, b, _) in zip(normalised(whole), normalised(parts)): torch.testing.assert_close(a.u, b.u, msg=name)


def test_spectral_norm_under_autocast_and_inference():
    with torch.autocast('cpu', torch.bfloat16): layer = spectral_norm(torch.nn.Linear(4, 4))
    assert layer.parametrizations.weight[0].v.dtype == torch.float32
    with torch.inference_mode(): layer.train()(torch.randn(2, 4))
    layer(torch.randn(2, 4)).sum().backward()
    layer.weight.sum().backward()
    assert [*normalised(make_layer(torch.nn.Linear(4, 4), {}))] and not [*normalised(make_layer(torch.nn.Linear(4, 4), False))]


def test_words_and_kinds_that_are_none():
    G = Generator(**SMALL).eval()
    z, y = torch.randn(2, 8), torch.arange(2)
    with pytest.raises(Refused, match='long'): G(z, y.to(torch.uint8))
    with pytest.raises(Refused, match='resample'): Conv2d(8, 8, resample='Down')
    with pytest.raises(Refused, match='two classes'): walk_classes(Generator(**SMALL | dict(n_classes=0)).eval(), [0, 1])
    maps = attention_maps(G, z, y)
    with pytest.raises(Refused, match='no query'): show_attention(maps, [])
    a, b = (show_attention(maps, queries, pictures=[0]) for queries in ([[12, 20], [8, 4]], [(12, 20), (8, 4)]))
    assert [ax.get_title() for ax in a.axes] == [ax.get_title() for ax in b.axes]
    with silenced(G, G.extra.values()): assert not G.extra['8'].gamma
    for measure in (prdc, kernel_distance):
        with pytest.raises(Refused, match='torch tensor'): measure([1.], torch.zeros(9, 2))


def test_seeds_and_worlds_are_named_exactly():
    assert seed_of(np.int64(3), 'a') == seed_of(3, 'a')
    for apart in (1.2345678, 4/3): assert float(Twins(32, apart=apart).spec.partition('=')[2]) == apart
