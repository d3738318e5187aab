"Runs that begin with somebody's weights."
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands import as_folders, shell
from sagan_nb.config import at_scale, preset
from sagan_nb.core import Refused
from sagan_nb.data import Toy
from sagan_nb.machinery import cli, finetune, runs
from sagan_nb.machinery.checkpoints import load_checkpoint
from sagan_nb.machinery.door import open_run
from sagan_nb.machinery.finetune import FineTune, blocks_held, shape_of, take_over, tuning_of
from sagan_nb.machinery.publish import save_pretrained
from sagan_nb.machinery.runs import train
from sagan_nb.networks import Discriminator, Generator
from sagan_nb.train import make_gan


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    "A finished run on four classes."
    out, toy = tmp_path_factory.mktemp('runs')/'first', Toy(n=40)
    cfg = replace(at_scale(preset('t1_attn_16'), 'smoke'), n_classes=4, data='toy', data_id=toy.fingerprint, steps=1, standing=0)
    train(cfg, toy, out)
    return out, cfg


def test_same_classes_same_weights(first):
    out, cfg = first
    gan, model = make_gan(cfg), open_run(out)
    assert take_over(gan.G, model.G) == [] and take_over(gan.D, model.D) == []
    assert all(torch.equal(a, b) for a, b in zip(gan.D.state_dict().values(), model.D.state_dict().values()))


def test_other_classes_get_the_mean_of_the_old(first, tmp_path, capsys):
    out, cfg = first
    toy = Toy(n=40, n_classes=7)
    new = replace(cfg, n_classes=7, data='toy:7', data_id=toy.fingerprint, steps=1)
    gan = train(new, toy, tmp_path/'second', prepare=FineTune(str(out), 0, tmp_path/'second'))
    said = capsys.readouterr().out
    assert 'G starts from' in said and 'D starts from' in said and 'made anew for other classes' in said
    start = make_gan(new)
    FineTune(str(out), 0, tmp_path)(start)
    old = open_run(out).G
    name = 'blocks.8.bn1.gain'
    assert torch.allclose(start.G.state_dict()[name], old.state_dict()[name].mean(0).expand(7, -1))
    assert torch.equal(start.G.linear.parametrizations.weight.original, old.linear.parametrizations.weight.original)
    assert gan.t == 1 and json.loads((tmp_path/'second'/'init.json').read_text())['init'] == str(out)


def test_held_blocks_do_not_move(first, tmp_path):
    "Neither in one go, nor after a resume, which is told nothing."
    out, cfg = first
    toy, run = Toy(n=40), tmp_path/'held'
    gan = train(replace(cfg, steps=2), toy, run, prepare=FineTune(str(out), 2, run))
    again = train(replace(cfg, steps=3), toy, run, resume=True, prepare=tuning_of(None, None, run, True))
    before = open_run(out).D.state_dict()
    for net in (gan.D, again.D):
        moved = {n.split('.')[1] for n, p in net.named_parameters() if n.startswith('blocks.') and not torch.equal(p, before[n])}
        assert moved and not moved & {'0', '1'}
    assert torch.equal(load_checkpoint(sorted((run/'checkpoints').glob('step_*.pt'))[-1]).D.blocks[0].conv1.bias, before['blocks.0.conv1.bias'])


def test_a_start_that_fails_is_made_again_by_a_resume(first, tmp_path, monkeypatch):
    "Not a run from scratch in its place: what it begins with is written down before anything is taken over."
    out, cfg = first
    toy, run = Toy(n=40), tmp_path/'second'
    def full(*args): raise OSError('no room')
    with monkeypatch.context() as m:
        m.setattr(finetune, 'open_run', full)
        with pytest.raises(OSError, match='no room'): train(replace(cfg, steps=2), toy, run, prepare=FineTune(str(out), 2, run))
    tuning = tuning_of(None, None, run, True)
    assert (tuning.init, tuning.held) == (str(out), 2)
    gan = train(replace(cfg, steps=2), toy, run, resume=True, prepare=tuning)
    assert torch.equal(gan.D.blocks[0].conv1.bias, open_run(out).D.blocks[0].conv1.bias)


def test_torchrun_may_start_it_again(tmp_path):
    "With the words of the first start: only a user who asks to resume is told that they do not go together."
    (tmp_path/'init.json').write_text(json.dumps(dict(init='there', held=1)))
    with pytest.raises(Refused, match='are for a new run'): tuning_of('there', 'd:1', tmp_path, True)
    for folder in (tmp_path, tmp_path/'lost'):
        tuning = tuning_of('there', 'd:1', folder, True, asked=False)
        assert (tuning.init, tuning.held) == ('there', 1)


def test_torchrun_does_not_enter_a_run_that_began_otherwise(first, tmp_path):
    out, _ = first
    with pytest.raises(Refused, match='began without --init'): tuning_of('there', None, out, True, asked=False)
    (tmp_path/'init.json').write_text(json.dumps(dict(init='there', held=1)))
    with pytest.raises(Refused, match='began with other weights'): tuning_of('elsewhere', 'd:1', tmp_path, True, asked=False)


def test_what_it_begins_with_is_there_before_its_settings(first, tmp_path, monkeypatch):
    "A disk that fills up between the two leaves nothing that a resume would take for a run from scratch."
    out, cfg = first
    toy, run = Toy(n=40), tmp_path/'second'
    real = runs.atomic_write
    def full(path, *args, **how):
        if Path(path).name == 'config.json': raise OSError(28, 'No space left on device')
        return real(path, *args, **how)
    with monkeypatch.context() as m:
        m.setattr(runs, 'atomic_write', full)
        with pytest.raises(OSError): train(replace(cfg, steps=2), toy, run, prepare=FineTune(str(out), 2, run))
    assert [p.name for p in run.iterdir() if p.name != '.lock'] == ['init.json']
    assert train(replace(cfg, steps=2), toy, run).t == 2 and not (run/'init.json').exists()             # begun anew, from scratch


def test_more_blocks_than_there_are_leave_no_folder(tmp_path):
    with pytest.raises(Refused, match='D has 4 blocks'): cli.sagan_train('t1_attn_16', data='toy', scale='smoke', freeze='d:9', out=str(tmp_path/'run'), device='cpu')
    assert not (tmp_path/'run').exists()


def test_weights_of_another_shape_leave_no_folder(first, tmp_path):
    "They were refused once the run had settings, and its folder was in the way of the next try."
    with pytest.raises(Refused, match=r'has shape .* here and .* in the weights: they fit .*width='):
        cli.sagan_train('t1_attn_16', data='toy', scale='smoke', init=str(first[0]), set=['width=2'], out=str(tmp_path/'run'), device='cpu')
    assert not (tmp_path/'run').exists()


def test_a_generator_alone(tmp_path, capsys):
    G = Generator(res=32, width=4, n_classes=4, attn_at=(16,))
    save_pretrained(G, tmp_path/'g.safetensors')
    cfg = replace(at_scale(preset('t1_attn_16'), 'smoke'), n_classes=4)
    start = make_gan(FineTune(f'{tmp_path}/g.safetensors', 0, tmp_path).settings(cfg, set()))
    FineTune(f'{tmp_path}/g.safetensors', 0, tmp_path)(start)
    assert 'D starts anew' in capsys.readouterr().out
    assert shape_of(G) == dict(res=32, width=4, z_dim=128, attn_at=(16,), block='attention', form='released', reduction=8)
    assert shape_of(Discriminator(res=32, width=4, n_classes=4, attn_at=()))['block'] == 'none'


def test_what_does_not_fit(first, tmp_path):
    out, cfg = first
    with pytest.raises(Refused, match='in the weights: they fit res=32'): take_over(make_gan(replace(cfg, width=6)).G, open_run(out).G)
    for text in ('g:3', 'd', 'd:x', '3'):
        with pytest.raises(Refused, match='d:N'): blocks_held(text)
    with pytest.raises(Refused, match='D has'): FineTune('', 9, tmp_path)(make_gan(cfg))
    for text in ('{', '[]'):
        (tmp_path/'init.json').write_text(text)
        with pytest.raises(Refused, match='damaged'): tuning_of(None, None, tmp_path, True)
    assert tuning_of(None, None, tmp_path/'new', False) is None


def test_the_command(first, tmp_path, monkeypatch, capsys):
    out, cfg = first
    as_folders(Toy(n=40, n_classes=3), tmp_path/'mine')
    monkeypatch.setattr(cli, 'summarise', lambda *args: [])
    run = lambda *args: shell(monkeypatch, capsys, 'sagan_train', 't1_attn_16', '--data', tmp_path/'mine', '--scale', 'smoke', '--steps', 1, *args)
    code, said, err = run('--init', out, '--freeze', 'd:1', '--out', tmp_path/'tuned')
    assert code == 0 and 'made anew for other classes' in said, err
    code, _, err = run('--init', tmp_path/'none', '--out', tmp_path/'no')
    assert code == 1 and 'there is no such run' in err and not (tmp_path/'no').exists()


def test_a_row_with_other_parts_than_the_weights_is_told(first, tmp_path, capsys):
    out, cfg = first
    none = replace(cfg, preset='t1_none', block='none', attn_at=())
    train(none, Toy(n=40), tmp_path/'none')
    tuning = FineTune(str(tmp_path/'none'), 0, tmp_path/'new')
    made = tuning.settings(cfg, set())
    assert (made.block, made.attn_at) == ('none', ()) and 't1_attn_16 has block=none, attn_at=none here' in capsys.readouterr().out
    with pytest.raises(Refused, match='no block on a map'): tuning.settings(replace(cfg, attn_at=(8,)), {'attn_at'})
    FineTune(str(out), 0, tmp_path/'new').settings(cfg, set())
    assert capsys.readouterr().out == ''
    for row, block in (('t1_res_16', 'residual'), ('t1_res3x3_16', 'residual3x3')):
        control = replace(cfg, preset=row, block=block)
        train(control, Toy(n=40), tmp_path/row)
        assert FineTune(str(tmp_path/row), 0, tmp_path/'new').settings(cfg, set()).block == block
        assert f'block={block}' in capsys.readouterr().out
