"The supervised probe of D: an easy world takes off, labels that mean nothing do not; censoring, files, claims."
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from sagan_nb.core import Refused
from sagan_nb.data import Pairs, Toy, Twins
from sagan_nb.machinery import probe as p, takeoff
from sagan_nb.machinery.answers import answers
from sagan_nb.networks import Discriminator


ROOT = Path(__file__).resolve().parents[1]


class Easy:
    "The two kinds differ in their brightness."
    name, spec = 'easy', 'easy'

    def __init__(self, level, n=1600): self.level, self.n = level, n
    def __len__(self): return self.n

    def batch(self, i):
        noise = torch.rand(len(i), 3, 32, 32, generator=torch.Generator().manual_seed(int(i[0])))
        return ((noise + self.level) * 60).to(torch.uint8), torch.zeros(len(i), dtype=torch.int64)


def judge():
    torch.manual_seed(0)
    return Discriminator(32, 1, 1, (), 'none', head='none')


def test_an_easy_world_takes_off_and_labels_without_meaning_do_not():
    seen = p.probe(judge(), Easy(2), Easy(1), 40, every=10)
    assert [o['t'] for o in seen] == [10, 20, 30, 40] and p.take_off(seen)[1] and seen[-1]['auc'] > .99
    blind = p.probe(judge(), Easy(2), Easy(2), 40, every=10)
    assert not p.take_off(blind)[1] and all(.4 < o['auc'] < .6 for o in blind)
    assert p.probe(judge(), Easy(2), Easy(2), 25, every=10)[-1]['t'] == 25


def test_nothing_but_the_rule_tells_the_kinds_apart():
    "Dealing out leaves no other trace: on the control, whose patterns are independent, D stays at chance."
    best = []
    for same in (True, False):
        torch.manual_seed(0)
        world = Twins(detail=1, n=6000, same=same)
        seen = p.probe(Discriminator(32, 4, 1, (), 'none', head='none'), world, p.deal_out(world), 250, every=50)
        best.append(max(o['auc'] for o in seen))
    assert best[0] > .8 and best[1] < .56


def test_auc():
    assert p.auc([2., 3.], [0., 1.]) == 1 and p.auc([0.], [1.]) == 0 and p.auc([1., 1.], [1., 1.]) == .5
    assert p.auc([0., 2.], [1., 3.]) == .25


@pytest.mark.parametrize('world', [Toy, Pairs, Twins])
def test_dealing_out_changes_the_partner_alone(world):
    intact = world(32, n=600)
    dealt = p.deal_out(intact)
    a, b = intact.batch(range(600))[0], dealt.batch(range(600))[0]
    left = lambda x: x[..., :14]                                        # soft edges may cross the middle
    assert not torch.equal(a, b) and torch.equal(intact.batch(range(600))[0], a)                    # the world itself is as it was
    if world is not Pairs: assert torch.equal(left(a), left(b))
    measured = [w.long_range(x.float() / 127.5 - 1, w.batch(range(600))[1])['mi'] for w, x in ((intact, a), (dealt, b))]
    assert measured[0] > 20*abs(measured[1]) and measured[1] < .2
    with pytest.raises(Refused, match='no parts'): p.deal_out(Easy(1))


def looks(*aucs): return [dict(t=100*(i + 1), auc=v, loss=1.) for i, v in enumerate(aucs)]


def test_take_off_and_censoring():
    assert p.take_off(looks(.5, .91, .95)) == (200, True) == p.take_off(looks(.5, .9, .7)) and p.take_off(looks(.5, .6)) == (200, False)
    row = [(100, True), (200, True), (400, False), (400, False)]
    o = p.takeoff_summary(row)
    assert (o['n'], o['share'], o['restricted_mean'], o['median']) == (4, .5, 275, 200) and o['share_low'] < .2 < .8 < o['share_high']
    assert p.takeoff_summary([(400, False)]*3)['share'] == 0 and p.takeoff_summary([(400, False)]*3)['median'] == np.inf
    assert p.takeoff_summary([(100, True)]*3)['restricted_mean'] == 100
    with pytest.raises(Refused, match='different lengths'): p.takeoff_summary([(400, False), (500, False)])


def test_the_median_is_counted_and_not_multiplied():
    "Ten of twenty have taken off at 800: that is half of them, whatever Kaplan-Meier's products round to."
    row = [(400, True)]*4 + [(500, True)]*2 + [(700, True)] + [(800, True)]*3 + [(1100, True)]*6 + [(2400, False)]*4
    assert p.takeoff_summary(row)['median'] == 800 and p.takeoff_summary(row[:7] + row[10:])['median'] == 1100
    assert p.takeoff_summary([(100, True), (2400, False)])['median'] == 100 and p.takeoff_summary([(100, True), (2400, False), (2400, False)])['median'] == np.inf


def test_comparing_rows():
    "The log-rank statistic by hand; a row against itself; nothing took off."
    a, b = {0: (100, True), 1: (200, True), 2: (300, True)}, {0: (200, True), 1: (400, False), 2: (400, False), 3: (400, False)}
    observed, expected, variance = 0., 0., 0.
    for t in (100, 200, 300):
        at_risk = [sum(o[0] >= t for o in g.values()) for g in (a, b)]
        events = [sum(o == (t, True) for o in g.values()) for g in (a, b)]
        n, d = sum(at_risk), sum(events)
        observed, expected = observed + events[0], expected + d*at_risk[0]/n
        variance += d*at_risk[0]*at_risk[1]*(n - d)/n**2/(n - 1)
    from scipy import stats
    o = p.compare_rows(a, b)
    assert np.isclose(o['p'], 2*stats.norm.sf(abs(observed - expected)/variance**.5)) and o['p'] < .1
    assert o['pairs'] == 3 and np.isclose(o['difference'], (-100 - 200 - 100)/3) and o['low'] < o['difference'] < o['high']
    assert p.compare_rows(a, a)['p'] == 1 and 'low' not in p.compare_rows(a, a)
    never = {s: (400, False) for s in range(3)}
    assert p.compare_rows(never, never)['p'] == 1


def test_holm():
    assert np.allclose(p.holm([.01, .04, .03]), [.03, .06, .06]) and p.holm([]) == [] and p.holm([.9, .8]) == [1, 1]


def test_claims():
    rows = ['t1_none', 't1_attn_16', 't1_res_16', 't1_attn_8']
    assert ('t1_attn_16', 't1_none') in p.claims_of(rows) and ('t1_attn_16', 't1_res_16') in p.claims_of(rows) and len(p.claims_of(rows)) == 3
    assert p.claims_of(rows, 't1_attn_16>t1_attn_8') == [('t1_attn_16', 't1_attn_8')]
    for bad in ('t1_attn_16', 't1_attn_16>t1_attn_32'):
        with pytest.raises(Refused, match='better>worse'): p.claims_of(rows, bad)
    early, late = ({s: dict(curve=[dict(t=t, auc=.95)], cpu_seconds=1) for s in range(6)} for t in (1, 2))
    claims = [('a', 'b'), ('a', 'c'), ('a', 'd')]                                    # of three claims one can be judged: it is still one of three
    one, = p.judge_claims(dict(a=early, b=late), claims)['claims']
    assert one['holm_p'] == min(1, 3*one['p']) and one['verdict'] == 'holds'
    assert p.seeds_of('10-12,4') == [10, 11, 12, 4]
    with pytest.raises(Refused, match='seeds are like'): p.seeds_of('ten')
    assert p.probe_verdict(.04, -3) == 'holds' and p.probe_verdict(.04, 3) == 'is reversed' and p.probe_verdict(.06, -3) == 'not resolved'
    assert p.probe_verdict(.04, -155, -2.9) == 'not resolved: the curves cross' and p.probe_verdict(.04, -3, 2.1) == 'holds'


def test_the_command_makes_files_and_goes_on(tmp_path, capsys, monkeypatch):
    small = ['--rows', 't1_none,t1_attn_8', '--width', '2', '--updates', '4', '--every', '2', '--out', str(tmp_path)]
    assert p.main([*small, '--seeds', '0', '--minutes', '0']) == 3 and 'missing still' in capsys.readouterr().out
    assert p.main([*small, '--seeds', '0']) == 0
    first = {f.name: f.read_bytes() for f in tmp_path.glob('t1_*.json')}
    assert len(first) == 2 and 't1_attn_8 before t1_none' in capsys.readouterr().out
    assert p.main([*small, '--seeds', '0,1']) == 0                                   # only seed 1 is run
    assert {f.name: f.read_bytes() for f in tmp_path.glob('t1_*-s0-*.json')} == first and len([*tmp_path.glob('t1_*.json')]) == 4
    one = json.loads(next(tmp_path.glob('t1_attn_8-s1-*.json')).read_text())
    assert [o['t'] for o in one['curve']] == [2, 4] and one['settings']['row'] == 't1_attn_8' and list(one['gamma']) == ['8']
    assert json.loads((tmp_path/'report.json').read_text())['rows']['t1_none']['n'] == 2
    again = p.run_probe(p.Settings(**one['settings']))
    assert again['curve'] == one['curve'] and again['data_id'] == one['data_id']                  # a seed decides it all
    wide = p.Settings('t1_none', 0, width=8)
    assert wide.name != p.Settings('t1_none', 0).name and wide.name.startswith('t1_none-s0-')
    with p.FileLock(tmp_path/'locks'/f'{wide.name}.lock'): assert p.run_missing([wide], tmp_path) == [wide]       # another process is at it
    monkeypatch.setattr(p, 'run_probe', lambda own: 1/0)
    with pytest.raises(ZeroDivisionError): p.run_missing([wide], tmp_path)
    assert not (tmp_path/f'{wide.name}.json').exists()


def planted(times):
    "Runs of rows that take off at these updates; None: never."
    def curve(at): return [dict(t=t, auc=.95 if at and t >= at else .5, loss=1.) for t in range(100, 2500, 100)]
    return {row: {seed: dict(curve=curve(at), cpu_seconds=80., gamma={} if row == 't1_none' else {'16': -.3}) for seed, at in zip(takeoff.SEEDS, own)} for row, own in times.items()}


def test_what_is_said_of_d_alone_follows_from_the_runs(tmp_path):
    early, late, never = [300 + 10*i for i in range(20)], [900 + 10*i for i in range(20)], [None]*20
    found = planted(dict(t1_attn_16=early, t1_none=late, t1_res_16=early, t1_attn_8=never))
    sooner, control, smaller = takeoff.probe_words(found)
    assert 'holds (20 seeds)' in sooner and '20 of 20 runs took off against 20 of 20, -600 updates' in sooner and 'provisional' not in sooner
    assert 'not resolved (20 seeds)' in control and 'p = 1 by Holm' in control and '20 of 20 runs took off against 0 of 20' in smaller and takeoff.reached_at(p.takeoff_summary([(2400, False)]*3)) == 'more than 2,400'
    text = answers(dict(twins=[]), alone=found)
    assert 'than without it' in text.split('**Does not')[0] and 'than with the residual control' in text.split('**Does not')[1]
    back, _ = takeoff.probe_words(planted(dict(t1_attn_16=late, t1_none=early, t1_res_16=late)))
    assert 'is reversed' in back
    few = planted(dict(t1_attn_16=early[:5], t1_none=late[:5]))
    assert takeoff.probe_words(few)[0].endswith('(5 seeds), provisional') and takeoff.probe_words({}) == []
    table = takeoff.probe_table(found)
    assert '| `t1_none` no block | 20 | 100% (84% to 100%) | 1,000 | 1,040 | 0.950, 0.950 | - | 80 |' in table and '| attention at 16, no block |' in table and '| 0% (0% to 16%) |' in table
    left, right = takeoff.show_takeoff(found).axes
    ends = {line.get_label(): line.get_ydata()[-1] for line in left.lines}
    assert ends == {'attention at 16': 1, 'no block': 1, 'residual at 16': 1, 'attention at 8': 0} and len(right.lines) == 4
    assert takeoff.probe_runs(tmp_path) == {}


def test_the_design_of_the_files_is_the_one_that_is_read():
    design = (ROOT/'results'/'probe'/'README.md').read_text()
    assert takeoff.WORLD in design and 'seeds | 10 to 29' in design and [*takeoff.SEEDS] == [*range(10, 30)]
    assert ','.join(f'{a}>{b}' for a, b in takeoff.CLAIMS) in design and all(f'`{row}`' in design for row in takeoff.ROWS)
    known = {p.Settings(row, seed, takeoff.WORLD).name for row in takeoff.ROWS for seed in takeoff.SEEDS}
    assert {o.stem for o in (ROOT/'results'/'probe').glob('t1_*.json')} <= known


def test_a_dose_is_shown_once_it_is_whole(tmp_path):
    far = next(o for o in takeoff.DOSES if o[0] == 'far')
    at = dict(t1_none=900, t1_attn_16=300, t1_res_16=None)
    for row, wanted in takeoff.dose_settings(far).items():
        for o, run in zip(wanted, planted({row: [at[row]]*10})[row].values(), strict=True):
            path = tmp_path/'far'/f'{o.name}.json'
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(run))
    assert takeoff.dose_table(tmp_path).splitlines()[2:] == ['| 27 numbers, far | 100%, 900 | 100%, 300 | 0%, 2,400 | -600 | -2,100 |']
    path.unlink()
    assert len(takeoff.dose_table(tmp_path).splitlines()) == 2


def test_the_commands_of_the_doses_make_the_runs_that_are_read():
    text = (ROOT/'results'/'probe_dose'/'README.md').read_text()
    rows, asked = re.search('rows=(.*)', text)[1], {}
    for line in re.findall('sagan_table probe (.*)', text):
        given = vars(p.probe_options().parse_args(shlex.split(line.replace('$rows', rows))))
        asked[Path(given['out']).name] = {p.Settings(row, seed, **{k: given[k] for k in ('data', 'res', 'updates', 'every')}).name
                                          for row in given['rows'].split(',') for seed in p.seeds_of(given['seeds'])}
    read = {Path(o[0]).name: {s.name for own in takeoff.dose_settings(o).values() for s in own} for o in takeoff.DOSES}
    assert read.pop('probe') <= {o.stem for o in (ROOT/'results'/'probe').glob('t1_*.json')} and asked == read
    for name, names in read.items(): assert {o.stem for o in (ROOT/'results'/'probe_dose'/name).glob('t1_*.json')} <= names
