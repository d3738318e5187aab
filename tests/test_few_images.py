"The study of few images: who sees which image, what the numbers mean on planted cases, and a page made of smoke results."
import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from commands import as_folders
from sagan_nb.config import at_scale, preset
from sagan_nb.core import Refused
from sagan_nb.data import Toy, open_source
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.guard import train_guarded
from sagan_nb.machinery.runs import Stopped, stop_at
from tools.site.few_images import few_page
from tools.study import few_images as few, generator, photographs


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "240 and 40 images of four classes, in folders."
    root = tmp_path_factory.mktemp('images')
    for name, n, seed in (('train', 240, 0), ('test', 40, 1)): as_folders(Toy(32, 4, n=n, seed=seed), root/name)
    return root


@pytest.fixture(scope='module')
def study(folders): return few.Study(folders/'train', folders/'test', folders/'results', folders/'runs', 'smoke', 4, most=100)


def test_every_beginning_has_all_classes_alike():
    labels = torch.tensor([0]*7 + [1]*5 + [2]*9)
    order = few.spread_order(labels, 3)
    assert len(order) == 15 == len({*order.tolist()}) and all({*labels[part].tolist()} == {0, 1, 2} for part in order.split(3))


def test_what_is_measured_with_is_in_no_training_set(study):
    held, rest, most = ({*map(bytes, o.pixels)} for o in (study.held, study.rest, few.chosen(study.whole, study.order[:100], 'most')))
    assert not held & rest and not held & most and not rest & most
    small = {*map(bytes, few.chosen(study.whole, study.order[:8], 'few').pixels)}
    assert small < most and len(small) == 8
    with pytest.raises(Refused, match='as many for the classifier'): few.Study('toy', 'toy', study.out, study.runs, 'smoke', 4, most=10**6)


def test_copies_are_seen_and_strangers_are_not():
    rng = torch.Generator().manual_seed(0)
    own, held, strangers = (torch.randn(n, 16, generator=rng) for n in (100, 500, 2000))
    assert few.copied_share(own + .01, own, held) == 1
    assert few.copied_share(strangers, own, held) == pytest.approx(.01, abs=.015)
    assert few.copied_share(torch.cat([own + .01, strangers[:100]]), own, held) == pytest.approx(.5, abs=.03)
    assert few.copied_share(strangers + 9, own, held) == 0           # noise far from all images copies nothing


def test_a_discriminator_that_knows_its_images_is_seen(study):
    source = few.chosen(study.whole, study.order[:8], 'few')
    known = {*map(bytes, source.pixels)}
    def knows(x, y): return torch.tensor([float(bytes(((p + 1)*127.5).round().byte().numpy()) in known) for p in x])
    assert study.known(knows, source) == 1 and study.known(lambda x, y: torch.zeros(len(x)), source) == .5


def test_a_run_and_its_result(study):
    "Stopped, gone on with, and left alone once its result is there."
    stop = [(3, stop_at(0.))]
    with pytest.raises(Stopped): study.run(100, 'diffaug', 1, stop)
    assert not [*study.out.glob('*.json')]
    study.run(100, 'diffaug', 1)
    path, = study.out.glob('*.json')
    assert path.name == f'100-diffaug-s1-smoke-4-v{few.NUMERICS}.json' and path.with_suffix('.png').exists()
    made, written = json.loads(path.read_text()), path.stat().st_mtime_ns
    assert 0 <= made['known'] <= 1 and {*made['copies']} == {'generated', 'real'} and [o['t'] for o in made['curve']] == [1, 2, 3, 4]
    assert made['settings']['augment'] == 'diffaug' and {o['n_real'] for o in made['records'] if o['metric'] != 'diversity'} == {40}
    study.run(100, 'diffaug', 1)
    assert path.stat().st_mtime_ns == written
    assert few_page(study.out/'nothing') == '' == few_page(study.out)      # which has no result at laptop scale
    text = few_page(study.out, 'smoke')
    assert '| 100 | diffaug |' in text and text.count('![A generated image') == 1 and '4 updates of 8 images; seeds: 1;' in text and '| nan' not in text


def planted(folder, shift):
    "Results of all rows, whose distance with augmentation is by so much larger; copies and looks as they may be."
    folder.mkdir()
    for images in few.IMAGES:
        for augment in few.AUGMENT:
            for seed in few.FEW.seeds:
                distance = 50. + seed + .1*(augment != 'none')*seed + shift.get(images, 0.)*(augment != 'none')
                records = [dict(metric=m, value=distance if 'Fr' in m else .25, real=.31, features_hash='a', n_fake=5000, n_real=10_000)
                           for m in ('Fréchet classifier distance', 'kernel classifier distance', 'precision', 'recall', 'diversity')]
                name = f'{images}-{augment}-s{seed}-laptop-2000-v{few.NUMERICS}'
                curve = [dict(t=t, distance=distance + abs(t - 1000)/100) for t in (500, 1000, 1500)]
                (folder/f'{name}.json').write_text(json.dumps(dict(
                    row=f'{images} {augment}', images=images, augment=augment, seed=seed, name=name, scale='laptop', steps=2000, numerics=few.NUMERICS,
                    records=records, curve=curve, copies=dict(generated=.8, real=.012), known=.9, settings=dict(batch=32))))


def test_the_page_says_what_the_results_say(tmp_path):
    planted(tmp_path/'results', {100: -9., 1000: 9.})
    text = few_page(tmp_path/'results')
    assert 'With 100 images' in text and '**holds (3 seeds)**' in text and '**is reversed (3 seeds)**' in text and '**not resolved' in text
    assert '| 100 | none | 51.00 ± 1.00 | 0.25 ± 0.00 |' in text and '| 80.0 % | 90 % |' in text and '1.2 % count as copies' in text and 'variety of 0.31' in text
    assert '| 10,000 | diffaug | 56.' in text and text.count('| 1,000 |') >= 6 and 'not run' not in text
    assert text.count('![A generated image') == 6 and '../results/results/100-none-s0-laptop-2000-v' in text


def test_the_generator_of_real_images_is_chosen_measured_and_published(folders, tmp_path, monkeypatch):
    "Of a run's kept checkpoints the one with the smallest KID; what is measured is the published file, and no path is told."
    monkeypatch.setenv('SAGAN_NB_CACHE', str(tmp_path/'cache'))
    source, run, out = open_source(folders/'train', 32), tmp_path/'run', tmp_path/'out'
    cfg = replace(at_scale(preset('t1_attn_16'), 'smoke'), data=str(folders/'train'), data_id=source.fingerprint, n_classes=4, steps=4, checkpoint_every=2)
    train_guarded(cfg, source, run, every=2, keep='best:2')
    generator.main(str(run), str(folders/'train'), str(folders/'test'), str(out), 40)
    made, file = json.loads((out/'generator.json').read_text(encoding='utf-8')), out/'t1_attn_16-cifar10.safetensors'
    kids = {o['step']: o['kid'] for o in made['candidates']}
    assert {*kids} == {2, 4} and made['step'] == min(kids, key=kids.get) and (made['of'], made['bytes']) == (4, file.stat().st_size)
    model = open_run(file)
    assert model.classes == source.classes and model.G.linear.bias.dtype == torch.float32
    both = [{o['metric']: o['value'] for o in made[key]} for key in ('records', 'silenced')]
    assert {'kernel classifier distance', 'precision', 'recall', 'diversity'} <= both[0].keys() == both[1].keys()
    assert all((out/f'{name}.png').stat().st_size > 1000 for name in ('samples', 'silenced'))
    told = file.read_bytes() + b''.join(p.read_bytes() for p in out.glob('*.json'))
    assert str(folders).encode() not in told and str(tmp_path).encode() not in told


def test_a_run_of_photographs_is_measured_by_images_that_it_never_saw(folders, tmp_path, monkeypatch):
    "By the classifier of the table, kept beside its results; with the block silenced where there is one; no path is told."
    monkeypatch.setenv('SAGAN_NB_CACHE', str(tmp_path/'cache'))
    source, out = open_source(folders/'train', 32), tmp_path/'out'
    for row, parts in (('t1_attn_16', {'silenced', 'usage'}), ('t1_res_16', {'silenced', 'usage'}), ('t1_none', {'usage'})):
        cfg = replace(at_scale(preset(row), 'smoke'), data=str(folders/'train'), data_id=source.fingerprint, n_classes=4, seed=3)
        train_guarded(cfg, source, tmp_path/row)
        photographs.main(str(tmp_path/row), str(folders/'train'), str(folders/'test'), str(out), 100)
        made = json.loads((out/'held_out'/f'{row}-s3.json').read_text())
        assert made.keys() - {'seal'} == {'row', 'seed', 'step', 'env', 'measured', 'held_out', 'copies'} | parts
        with Image.open(out/'held_out'/f'{row}-s3.png') as strip: assert strip.width >= 4*32 and strip.height >= 2*32
        found = {o['metric']: o for o in made['held_out']}
        assert {'Fréchet classifier distance', 'kernel classifier distance', 'precision', 'recall', 'diversity'} <= found.keys()
        assert found['precision']['data'] == generator.HELD_OUT and found['precision']['n_fake'] == 100 and 0 <= made['copies']['real'] < .5
        assert str(folders) not in json.dumps(made) and str(tmp_path) not in json.dumps(made)
    kept, = (out/'features').glob('*.safetensors')
    with pytest.raises(Refused, match='is not what'): photographs.main(str(tmp_path/'t1_none'), str(folders/'test'), str(folders/'test'), str(out), 100)
