"Serves chapter 10: tables of features, and records: numbers with the protocol that must stand beside them."
import copy
import json
import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import __version__
from ..core import Refused, from_uint8, to_uint8
from ..data import diversity, seed_of
from ..distributed import Ranks
from ..metrics import Stats, frechet_distance, inception_score, intra_distances, kernel_distance, prdc
from .atomic import atomic_write
from .checkpoints import Diverged
from .features import Features, TooFew, open_features, weights_hash
from .files import (cache_folder, content_hash, must_be_file, prune_cache, read_cache, read_json, sealed_json, sweep,
                    unsealed_json, write_cache)
from .group import texts_of_all
from .pictures import take_batch
from .sources import uneven
from .terminal import progress


class Table:
    "Features, logits and labels of n images in shards; each shard is made once, when first needed."
    def __init__(self,
        y:Tensor,                 # labels, (n,)
        make,                     # (a, b) -> pictures a to b, uint8 or float in [-1, 1]
        features:Features,        # the network
        folder:Path=None,         # where shards are kept; None: in memory
        shard:int=1000,           # pictures in one
        batch:int=100,            # pictures at a time through the network
    ):
        self.n, self.y, self.make, self.features = len(y), y, make, features
        self.folder, self.shard, self.batch, self.held, self.recent = folder, shard, batch, {}, None
        self.ranks = Ranks(0, 1)             # who makes the shards

    def __len__(self): return -(-self.n // self.shard)

    def __getitem__(self, i:int)->dict:      # features (m, d), logits (m, K)
        "Return shard i from memory or its file, or make it now."
        if i in self.held: return self.held[i]
        if self.recent and self.recent[0] == i: return self.recent[1]
        path = self.folder and self.folder/f'{i:06}.safetensors'
        kept = read_cache(path) if path else None
        out = kept[0] if kept else self.compute(i)
        if not kept and not (path and write_cache(path, out)): self.held[i] = out
        self.recent = i, out
        return out

    def compute(self, i:int)->dict:          # as __getitem__
        "Make shard i."
        end = min((i + 1)*self.shard, self.n)
        rows = [self.features(self.make(a, min(a + self.batch, end))) for a in range(i*self.shard, end, self.batch)]
        return dict(zip(('features', 'logits'), map(torch.cat, zip(*rows))))

    def complete(self)->'Table':
        "Make missing shards, with a progress bar; ranks that see one folder take turns, and wait for each other."
        mine = range(self.ranks.rank, len(self), self.ranks.world) if self.folder else range(len(self))
        for i in progress(mine, 'computing features'):
            if not (self.folder and (self.folder/f'{i:06}.safetensors').exists()): self[i]
        self.ranks.any(False)
        return self

    def by_class(self, K:int):               # classes; the table is sorted by class -> K matrices (m, d), one at a time
        "Yield features class by class, reading each shard once."
        ends = [0, *self.y.bincount(minlength=K).cumsum(0).tolist()]
        return (self.rows('features', a, b) for a, b in zip(ends, ends[1:]))

    def rows(self, what:str, a:int=0, b:int=None)->Tensor:       # 'features' or 'logits' -> (b - a, ...)
        "Return rows a to b; all by default."
        b, size = self.n if b is None else b, self.shard
        if a == b: return self[0][what][:0]
        out = None
        for i in range(a // size, -(-b // size)):        # into one tensor: both together would take twice the memory
            part = self[i][what][max(a - i*size, 0):b - i*size]
            if out is None: out = part.new_empty(b - a, *part.shape[1:])
            out[max(i*size - a, 0):][:len(part)] = part
        return out

    def stats(self)->Stats:
        "Compute mean and covariance of the features; they are kept with the shards."
        path = self.folder and self.folder/'statistics.safetensors'
        if path and (kept := read_cache(path)): return Stats.from_moments(**kept[0], n=self.n)
        s = Stats(self[0]['features'].shape[1])
        for i in range(len(self)): s.add(self[i]['features'])
        if path and s.n > 1: write_cache(path, dict(mean=s.mean, covariance=s.covariance))
        return s


def table_key(
    features:Features,        # the network
    rounding:bool,            # see evaluate
    shard:int=1000,           # see Table
    batch:int=100,            # no part of it
)->dict:                      # what every table's key holds
    "Return the part of a cache key that says how features are made."
    return dict(features=features.hash, resize=features.resize, rounding=rounding, shard=shard, version=2)


def real_table(
    source,                   # pictures, from `open_source`
    features:Features,        # the network
    n:int=50_000,             # how many, chosen at random; all where there are no more
    seed:int=0,               # of the choice
    rounding:bool=True,       # False: as floats in [-1, 1]
    folder:Path=None,         # where features are kept
    **kwargs,                 # of Table
)->Table:                     # sorted by class
    "Prepare the features of real images."
    index, total = torch.arange(len(source)), len(source)
    if n < total: index = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:n]
    index = index[source.labels[index].argsort(stable=True)]
    chosen = content_hash(dict(index=index), {})
    key = dict(table_key(features, rounding, **kwargs), real=source.fingerprint, index=chosen)
    def make(a, b):
        x, _ = take_batch(source, index[a:b])
        return x if rounding else from_uint8(x)
    return Table(source.labels[index], make, features, folder and folder/f'real-{content_hash({}, key)[:16]}', **kwargs)


def fake_table(
    G:nn.Module,              # generator in evaluation mode: G(z, y), with z_dim and n_classes
    features:Features,        # the network
    n:int=50_000,             # how many
    labels:str='uniform',     # 'uniform': at random (released code); 'data': at random, as often as in the data;
                              # 'balanced': as many of each class, sorted
    counts:list=(),           # images of each class, for 'data'
    seed:int=0,               # of z and labels
    rounding:bool=True,       # False: floats, as the released code has it
    folder:Path=None,         # where features are kept
    **kwargs,                 # of Table
)->Table:                     # in the order of drawing; balanced: sorted by class
    "Prepare the features of generated images. Raises Refused in training mode and for unknown `labels`."
    if G.training: raise Refused('the generator is in training mode: its pictures would depend on the batch size')
    if labels not in ('uniform', 'balanced', 'data'):
        raise Refused(f"labels are 'uniform', 'data' or 'balanced', not {labels!r}")
    rng, K = torch.Generator().manual_seed(seed_of('evaluate', seed, labels)), max(G.n_classes, 1)
    device = next(G.parameters()).device
    z = torch.randn(n, G.z_dim, generator=rng)
    if labels == 'uniform': y = torch.randint(K, (n,), generator=rng)
    elif labels == 'balanced': y = torch.arange(n) * K // n
    else: y = torch.multinomial(torch.tensor(counts or [1]).double(), n, replacement=True, generator=rng)
    @torch.no_grad()
    def make(a, b):
        x = G(z[a:b].to(device), y[a:b].to(device)).float()
        if not x.isfinite().all(): raise Diverged('the generator draws values that are not finite numbers')
        return to_uint8(x) if rounding else x
    settings = [f'{name} {m}' for name, m in G.named_modules() if type(m).__module__.startswith('torch.')]
    key = dict(table_key(features, rounding, **kwargs), generator=weights_hash(G), layers=settings, n=n, labels=labels,
               seed=seed)
    if labels == 'data': key['counts'] = list(counts)
    return Table(y, make, features, folder and folder/f'fake-{content_hash({}, key)[:16]}', **kwargs)


METRIC_NAMES = dict(score=('IS', 'classifier score'), distance=('FID', 'Fréchet classifier distance'),
                    intra=('intra-FID', 'intra distance'), kid=('KID', 'kernel classifier distance'))
METRICS = ('score', 'distance', 'intra', 'kid', 'prdc', 'diversity', 'long_range')


@dataclass
class Task:
    "Everything that the metrics of one evaluation share; features are made when first needed."
    fake:Table                # labels as released: uniform
    balanced:Table            # the same number in each class; None: the two sides have different classes
    real:Table                # pictures chosen at random
    reference:Table           # as many as there are, or as are asked for: the reference of the intra distance
    source:object             # the real pictures
    G:nn.Module               # the generator, or None

    def score(self):
        "Score one split and ten shuffled ones, of generated and of real images."
        if len(self.source.classes) < 2 and not self.fake.features.published:
            return [('score', None, dict(reason='there are no classes to be sure of'))]
        fake, real = self.fake.complete().rows('logits'), self.real.complete().rows('logits')
        if not fake.shape[1]: return [('score', None, dict(reason='these features know no classes'))]
        out = []
        for splits in (1, 10) if min(len(fake), len(real)) >= 10 else (1,):
            (value, spread), (own, _) = inception_score(fake, splits), inception_score(real, splits)
            out.append(('score', value, dict(splits=splits, spread=spread if splits > 1 else None, real=own)))
        return out

    def distance(self):
        "Compute the Fréchet distance, and how much of it the means make."
        a, b = self.fake.complete().stats(), self.real.complete().stats()
        return [('distance', frechet_distance(a, b), dict(of_means=(a.mean - b.mean).square().sum().item()))]

    def intra(self):
        "Compute one distance per class, and their mean."
        if self.balanced is None: return [('intra', None, dict(reason='the two sides have different classes'))]
        K, n, table, names = len(self.source.classes), self.balanced.n, self.reference, self.source.classes
        if not K: return [('intra', None, dict(reason='the pictures have no classes'))]
        made, real = self.balanced.complete().by_class(K), table.complete().by_class(K)
        mean, values = intra_distances(zip(progress(range(K), 'comparing classes', least=20), made, real))
        more = dict(labels='balanced', n_fake=n, n_real=table.n, classes=len(values),
                    left_out={names[k]: why for k, why in values.left_out.items()},
                    per_class={names[k]: v for k, v in values.items()})
        if not values: more['reason'] = 'no class has two real and two generated pictures'
        return [('intra', mean, more)]

    def kid(self):
        "Average over 100 subsets of 1,000 (or all images, if there are fewer), with their spread."
        fake, real = self.fake.complete().rows('features'), self.real.complete().rows('features')
        size = min(1000, len(fake), len(real))
        whole = size == len(fake) == len(real)
        if whole: warnings.warn(f'KID over all {size} pictures, without a spread: any subset of {size} is all of them')
        subsets = 1 if whole else 100
        value, spread = kernel_distance(fake, real, subsets, size)
        return [('kid', value, dict(spread=None if whole else spread, subsets=subsets, subset_size=size))]

    def prdc(self):
        "Compute precision and recall with 3 neighbours, density and coverage with 5."
        few = min(self.fake.n, self.real.n)
        if few < 6: return [('precision and recall', None, dict(reason=f'5 neighbours need 6 pictures, got {few}'))]
        values = prdc(self.fake.complete().rows('features'), self.real.complete().rows('features'))
        return [(k, v, dict(neighbours=3 if k in ('precision', 'recall') else 5)) for k, v in values.items()]

    @cached_property
    def pixels(self):
        "Draw up to 5,000 generated and as many real images, with their classes."
        n = min(self.fake.n, 5000)
        x = torch.cat([self.fake.make(a, min(a + 100, n)) for a in range(0, n, 100)]).cpu()
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(0))[:n]
        real, y = take_batch(self.source, order)
        x = from_uint8(x) if x.dtype == torch.uint8 else x
        return (x, self.fake.y[:n]), (from_uint8(real), y)

    def from_pixels(self, found, real):      # name -> value, of the generated and of the real pictures
        "Turn values measured on pixels into results."
        n_fake, n_real = (len(y) for _, y in self.pixels)
        more = dict(features='pixels', features_hash='none', resize='none', n_fake=n_fake, n_real=n_real)
        return [(name, value, dict(more, real=real[name])) for name, value in found.items()]

    def diversity(self):
        "Measure the standard deviation of a pixel within a class."
        return self.from_pixels(*(dict(diversity=diversity(*part)) for part in self.pixels))

    def long_range(self):
        "Measure whether distant parts agree, for images drawn by code."
        rule = self.source.long_range
        if rule is None: return [('long_range', None, dict(reason='only pictures drawn by code have a rule'))]
        both = [rule(x, y) for x, y in self.pixels]
        return self.from_pixels(*({f'long_range_{k}': v for k, v in o.items() if type(v) is float} for o in both))


def record(
    name:str,                 # as a metric of Task calls it
    value:float,              # None: there is no such number
    more:dict,                # what this metric has to add; it wins over the stamp
    stamp:dict,               # the protocol
    features:Features,        # whose numbers these are
)->dict:                      # metric, value (or 'n/a' with its reason), and the protocol
    "Join a number with its protocol. Only Inception's numbers get the published names."
    published, own = METRIC_NAMES.get(name, (name, name))
    printed = published if features.published else own
    more = {k: v for k, v in more.items() if v is not None}
    return dict(metric=printed, value='n/a' if value is None else value) | stamp | more


def steady_generator(
    G:nn.Module,              # generator
)->nn.Module:                 # the same, or a copy
    "Return a generator whose images do not depend on earlier ones: released weights move u even in evaluation mode."
    if not any(getattr(m, 'update', None) == 'always' for m in G.modules()): return G
    G = copy.deepcopy(G)
    for m in G.modules():
        if getattr(m, 'update', None) == 'always': m.update = 'forward'
    return G


def in_turn(
    ranks:Ranks,              # all of them call this
    f,                        # what to call
    *args,                    # with what
):                            # what it returned
    "Call a function on rank 0, which may keep what it makes, and then on the others. What one is refused, all are."
    made, own = None, None
    for turn in (True, False):
        if ranks.first == turn:
            try: made = f(*args)
            except Exception as e: own = e
        words = f'{type(own).__name__} {own}' if own else ''
        kind, _, why = max(texts_of_all(words) if ranks.world > 1 else [words], key=len).partition(' ')
        if own: raise own
        if kind: raise (TooFew if kind == TooFew.__name__ else Refused)(why)
    return made


def evaluate(
    G:nn.Module,              # generator in evaluation mode, with z_dim, n_classes and res
    source,                   # the real pictures, from `open_source`
    metrics=('score', 'distance', 'intra'),   # any of METRICS
    features='domain',        # 'domain', 'inception', 'inception:PATH', or a Features object
    n_fake:int=10_000,        # generated pictures; 50,000: released protocol
    n_real:int=None,          # real pictures, at most; None: 50,000, and all there are for the intra distance
    per_class:int=None,       # generated pictures of each class for the intra distance; None: n_fake over all
    seed:int=0,               # of noise, labels and the choice of real pictures
    rounding:bool=True,       # round generated pictures to 0..255; False: the released code's floats
    cache='default',          # folder; 'default': cache_folder(); None: keep nothing
    batch:int=100,            # pictures at a time
    labels:str='uniform',     # of generated images: 'uniform', or 'data': as often as in the data
    about:dict=None,          # what else to say of the generator: step, checkpoint, ema, batch_norm, commit, ...
    ranks:Ranks=None,         # which share the work, and all call this; None: this process alone
)->list:                      # records
    "Measure a generator; each number carries its protocol. Raises Refused for unknown metrics and images that misfit."
    check_task(G, source, metrics, n_fake, n_real)
    given, G, seed, ranks = G, steady_generator(G), int(seed), ranks or Ranks(0, 1)
    held = {} if G is given else dict(spectral_norm='u held still')
    K, device = max(len(source.classes), 1), next(G.parameters()).device
    net = features if isinstance(features, Features) else in_turn(ranks, open_features, features, source, cache, device)
    folder = cache_folder() if cache == 'default' else cache and Path(cache)
    how = dict(features=net, seed=seed, rounding=rounding, folder=folder, batch=batch)
    if folder: prune_cache(folder)
    balanced = (per_class or max(n_fake // K, 2)) * K
    task = Task(fake_table(G, n=n_fake, labels=labels, counts=source.counts, **how),
                fake_table(G, n=balanced, labels='balanced', **how),
                *(real_table(source, n=n_real or n, **how) for n in (50_000, len(source))), source, G)
    for table in (task.fake, task.balanced, task.real, task.reference): table.ranks = ranks
    judged = {f'features_{k}': v for k, v in net.facts.items() if k in ('accuracy', 'held_out', 'task')}
    stamp = dict(features=net.name, features_hash=net.hash, **judged, resize=net.resize,
                 n_fake=n_fake, n_real=task.real.n, pictures='rounded to uint8' if rounding else 'floats',
                 seed=seed, labels=labels, generator=weights_hash(G), data=source.spec, data_id=source.fingerprint,
                 unreadable=len(source.unreadable), version=__version__, **held, **(about or {}))
    records = [record(*found, stamp, net) for m in metrics for found in collect_warnings(getattr(task, m))]
    return [note_labels(o, source.counts) for o in records]


def note_labels(
    record:dict,              # from `record`
    counts:list,              # real images of each class
)->dict:                      # with a note where it matters
    "Note that labels were drawn uniformly where the data is imbalanced: the distance then counts that, too."
    words = uneven(counts)
    if not words or record['labels'] != 'uniform' or record['metric'] in METRIC_NAMES['intra']: return record
    return record | dict(notes=[*record.get('notes', ()), f'labels are drawn uniformly, but {words}'])


def collect_warnings(
    metric,                   # a method of Task
)->list:                      # what it found, each with `notes` where there were warnings
    "Run a metric and attach its warnings to its results."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always', UserWarning)
        warnings.filterwarnings('ignore', 'Please use the new API settings')     # torch 2.9's, of what older ones need
        found = metric()
    for w in said:
        if w.category is not UserWarning: warnings.warn(w.message, stacklevel=3)
    notes = list(dict.fromkeys(str(w.message) for w in said if w.category is UserWarning))
    return [(name, value, dict(more, notes=notes) if notes else more) for name, value, more in found]


SAY_FID = '. FID is the distance of Inception features: say --metrics distance --features inception'
SAY_IS = '. IS is the score by Inception: say --metrics score --features inception'
SAY_KID = '. KID is the kernel distance of Inception features: say --metrics kid --features inception'
OTHER_NAMES = {'fid': SAY_FID, 'frechet': SAY_FID, 'is': SAY_IS, 'inception_score': SAY_IS, 'kid': SAY_KID}


def check_metrics(
    metrics,                  # names
):
    "Raise Refused for no metric at all, and for one that is none."
    if not metrics: raise Refused(f'no metric was asked for; choose from {", ".join(METRICS)}')
    if unknown := [m for m in metrics if m not in METRICS]:
        hint = OTHER_NAMES.get(unknown[0].lower(), '')
        raise Refused(f'there is no metric {unknown[0]!r}; choose from {", ".join(METRICS)}{hint}')


def check_task(
    G:nn.Module,              # generator
    source,                   # real pictures
    metrics,                  # names
    n_fake:int,               # generated pictures
    n_real:int,               # real pictures, or None
):
    "Check the arguments of `evaluate`. Raises Refused for unknown metrics, images that do not fit, or too few."
    check_metrics(metrics)
    if (G.res, G.n_classes) != (source.res, len(source.classes)):
        raise Refused(f'the generator draws {G.res} px and {G.n_classes} classes, but {source.spec} has '
                      f'{source.res} px and {len(source.classes)} classes')
    real = len(source) if n_real is None else min(n_real, len(source))
    if min(n_fake, real) < 2:
        raise TooFew(f'a distance needs at least 2 pictures of each kind, got {n_fake} and {real}')


def protocol_of(
    o:dict,                   # a record
)->str:                       # one line
    "Show the protocol of a record in one line."
    how, held = o['features'], ''
    if how != 'pixels' and 'features_accuracy' in o:
        held = f', {o["features_accuracy"]:.1%} right on {o["features_held_out"]} held out'
    if how != 'pixels': how = f'{how} ({o["features_hash"]}{held})'
    return '; '.join([how, f'{o["n_fake"]} generated against {o["n_real"]} real', o['pictures'], f'seed {o["seed"]}',
                      *[f'{k} {o[k]}' for k in ('step', 'batch_norm') if k in o]])


def as_table(
    records:list,             # from evaluate
)->str:                       # one line per number, the protocol once below
    "Show records as text."
    def show(v): return f'{v:10.4g}' if isinstance(v, (int, float)) else f'{v or "":>10}'
    lines = [f'{"":28} generated       real']
    for o in records:
        notes = [f'{k} {o[k]}' for k in ('splits', 'subset_size', 'neighbours', 'classes', 'reason') if k in o]
        if 'spread' in o: notes.append(f'± {o["spread"]:.3g}')
        if o.get('left_out'): notes.append(f'{len(o["left_out"])} classes left out')
        lines.append(f'{o["metric"]:28}{show(o["value"])} {show(o.get("real"))}  {", ".join(notes)}'.rstrip())
    said = {}
    for o in records: said.setdefault(protocol_of(o), []).append(o['metric'])
    known = [f'{", ".join(dict.fromkeys(names))}: {how}' for how, names in said.items()]
    notes = dict.fromkeys(f'Note: {note}.' for o in records for note in o.get('notes', ()))
    return '\n'.join([*lines, *known, *notes])


def left_out(
    records:list,             # from `evaluate`
)->str:                       # a line for each record that lacks classes; the first ten are named
    "Which classes a mean over classes does without, and why."
    lines = ['']
    for o in records:
        names = [f'{name} ({why})' for name, why in o.get('left_out', {}).items()]
        more = f' and {len(names) - 10} more, all in the file' if len(names) > 10 else ''
        if names: lines.append(f'{o["metric"]} without {", ".join(names[:10])}{more}')
    return '\n'.join(lines)


def one_line(
    records:list,             # from evaluate
)->str:                       # metric value | metric value | ... | protocol
    "Show records in one line."
    def value(v): return v if isinstance(v, str) else f'{v:.4g}'
    def name(o): return o['metric'] + (f'/{o["splits"]}' if 'splits' in o else '')
    cells = [f'{name(o)} {value(o["value"])}' for o in records]
    hows = dict.fromkeys(f'{o["features"]} {o["features_hash"]}, n {o["n_fake"]}/{o["n_real"]}' for o in records)
    return ' | '.join([*cells, *hows])


def run_scores(
    run,                      # run folder
)->list:                      # records of metrics.json; [] without one
    "Read the scores of a run. Raises Refused where they are damaged."
    path, remedy = Path(run)/'metrics.json', 'delete it, and sagan_eval makes it anew'
    return stored_records(path, remedy) if path.exists() else []


IDENTITY = 'metric features_hash splits n_fake n_real labels pictures seed generator step data_id protocol'.split()


def is_record(
    value,                    # read from a file
)->bool:
    "Whether it is a metric by its name with numbers or words, and can be told from others."
    plain = int, float, str, type(None)
    return (isinstance(value, dict) and isinstance(value.get('metric'), str) and 'value' in value
            and all(isinstance(value.get(k), plain) for k in ('value', 'real', *IDENTITY)))


def stored_records(
    path:Path,                # a file of records
    remedy:str,               # what to do about a damaged one
)->list:                      # records
    "Read records, each against the hash it carries. Raises Refused for one that is damaged or no record."
    records = read_json(path, remedy, list)
    try:
        if not all(map(is_record, records)): raise ValueError('no list of records')
        return [*map(unsealed_json, records)]
    except ValueError as e: raise Refused(f'{path} is damaged ({e}): {remedy}') from None


def read_records(
    path:Path,                # metrics.json, or where it will be
)->list:                      # records
    "Read stored records; a file that holds something else is renamed to `.bad`."
    if not must_be_file(path).exists(): return []
    try: return stored_records(path, 'it is kept under another name')
    except Refused: os.replace(path, path.with_name(path.name + '.bad'))
    warnings.warn(f'{path} held no records: kept as {path.name}.bad', stacklevel=3)
    return []


def save_records(
    path,                     # metrics.json; replaced only when the new one is complete
    records:list,             # from evaluate
)->list:                      # all records that are there now
    "Add records to a file; a new one replaces an older one of the same metric and protocol."
    from filelock import FileLock
    path = Path(path)
    def identity(o): return tuple(o.get(k) for k in IDENTITY)
    new = {identity(o) for o in records}
    with FileLock(path.with_name(f'.{path.name}.lock')):          # another process may be adding to it
        sweep(path.parent, path.name + '.*')
        out = [*[o for o in read_records(path) if identity(o) not in new], *records]
        text = json.dumps([*map(sealed_json, out)], indent=1)
        with atomic_write(path) as part: part.write_text(text, encoding='utf-8')
    return out
