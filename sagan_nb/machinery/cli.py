"Serves chapter 16: the commands."
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from fastcore.script import Param

from ..ablation import TABLES, measured_alike
from ..attention_maps import LayerMaps, describe_attention, show_attention
from ..core import Refused, save_fig, show_grid
from ..data import open_source
from ..distributed import Ranks
from ..networks import RESOLUTIONS
from .atomic import atomic_write
from .board import Board
from .certificate import certificate, certify, find_object, guess_kind, insist
from .checkpoints import disk_price
from .door import open_run
from .drawing import maps_of_run, neighbours_of, open_measured, open_to_draw, row_names, sample_rows, shown_classes
from .evaluate import as_table, evaluate, left_out, save_records
from .ending import summarise
from .features import FEWEST, check_features
from .figures import deciding_measure, show_pairs, show_samples, show_training
from .film import film, gif, there_and_back, timelapse
from .guard import check_watch, train_guarded
from .finetune import check_networks, tuning_of
from .group import apart
from .html import page, widget_html
from .jobs import Job, adopt as adopt_run, asked_for, collect, features_of, run_rows, set_aside, setting_name
from .machine import keep_memory, pick_device
from .many import goes_to_many, write_many
from .options import (FIGURE_SUFFIXES, asked_rows, attention_tip, begun, check_eval_options, check_sample_options,
                      command, command_path, file_to_write, folder_of, free_path, from_here, pick_classes,
                      read_queries, refuse_idle, replaces, resumable, rows_of, run_settings, say_lost, say_next,
                      steps_still_within, steps_within)
from .outlook import say_commands, say_plan, say_stored
from .packs import pack, verify_pack
from .probe import with_probe
from .protocols import by_protocol_table, by_protocols, compare, open_pair
from .publish import export
from .pushing import push as push_to_hub
from .queries import find_queries
from .report import report
from .runs import BUSY, NoteMachine, StopOnSignal, Stopped, kept_samples, pictures_of, stop_at
from .sources import describe
from .summary import UNUSED
from .tables import harmless, markdown
from .terminal import show_markdown, wrap


@command
def sagan_train(
    preset:Param('row of the paper, of --list-presets (default: t1_attn_16)', str, opt=False, nargs='?')=None,
    data:str=None,            # toy, cifar10 (or other names), a class-per-folder directory, .zip or pack (default: toy)
    scale:str=None,           # smoke, laptop, gpu or paper (default: laptop)
    out:str='runs/new',       # run folder to make, or to go on with
    seed:int=None,            # of weights, data order, z and labels (default: 0)
    steps:int=None,           # updates of G (default: as the scale says)
    set:Param('other settings, as key=value key=value, of --list-settings', str, nargs='*', action='extend')=None,
    within:float=None,        # make fewer if only fewer fit into so many minutes, timed first
    resume:bool=False,        # go on from the newest checkpoint in --out
    init:str=None,            # weights to begin with: a run, anybody's file, or a public name such as mmgen:imagenet
    freeze:str=None,          # d:N holds the first N blocks of D
    tensorboard:bool=False,   # hand the log and the samples on to TensorBoard, in RUN/tensorboard
    unlabelled:bool=False,    # train on a folder without classes
    look_every:int=0,         # steps between looks at distance and diversity, for signs of collapse (default: none)
    keep:str=None,            # best:K keeps the K checkpoints with the smallest distance, as best_STEP.pt
    on_collapse:str='go',     # go on, stop (exit code 3), or back: to the last good checkpoint, with other noise
    features:str='domain',    # what looks and the end measure with: as of sagan_eval
    device:str='auto',        # auto, cpu or cuda
):
    "Train a SAGAN."
    keep_memory()
    ranks = Ranks()
    if within is not None and (resume or not 0 < within < float('inf')):
        raise Refused('--within takes minutes, more than 0, and is for a new run: say --steps to lengthen one')
    asked, resume = resume, begun(out, resume)
    within = None if resume else within                       # which was asked of the start
    pairs = [*(set or ()), *[f'{k}={v}' for k, v in (('seed', seed), ('steps', steps)) if v is not None]]
    tuning = tuning_of(init, freeze, out, resume, asked)
    cfg = run_settings(preset, data, scale, out, pairs, resume, unlabelled, pick_device(device))
    if tuning and not resume: cfg = tuning.settings(cfg, {setting_name(p) for p in pairs})
    where = pick_device(device, cfg.compiled, cfg.precision == 'bf16')
    check_features(features)                                  # refuses before pictures are read, as the next two do
    best = check_watch(cfg, look_every, keep, on_collapse)
    check_networks(cfg, tuning)
    n_classes = cfg.n_classes if any(setting_name(p) == 'n_classes' for p in pairs) else None
    source = open_source(cfg.data, res=cfg.res, unlabelled=cfg.n_classes == 0, n_classes=n_classes or None)
    print(describe(source))
    if len(source) < FEWEST and features == 'domain':
        print(f'fewer than {FEWEST} pictures are too few for a classifier: this run will not be measured')
    if source.unreadable or any(source.found.values()): print(f'All that was left out or looks wrong: {out}/data.json')
    cfg, wanted = replace(cfg, n_classes=len(source.classes), data_id=source.fingerprint), cfg.steps
    if tuning and not resume: tuning.fits(cfg)
    if within is not None: cfg = replace(cfg, steps=steps_within(within, cfg, source, where))
    kept, size = disk_price(cfg, look_every, best)
    print(wrap(f'{cfg.preset} at {cfg.scale} scale: {cfg.steps} steps of {cfg.batch} pictures, '
               f'{cfg.precision} on {where}{f", {ranks.world} ranks" if ranks.world > 1 else ""}, '
               f'into {out} ({kept} checkpoints, about {kept*size / 1e6:,.0f} MB)'))
    board = [(100, Board(out))] if tensorboard and ranks.first else []
    stop = StopOnSignal(f'Go on with: {command_path("sagan_train", "--resume", "--out", out)}')
    noted = [(1, NoteMachine(out, where))] if resume else []
    hooks = [*noted, *board, (1, stop)]
    rest, began = (where, hooks, tuning, look_every, keep, on_collapse, features), time.monotonic()
    with resumable(out):
        gan = train_guarded(cfg, source, out, resume, *rest)
        while within is not None and (n := steps_still_within(within, time.monotonic() - began, gan.t, wanted)) > gan.t:
            cfg = replace(cfg, steps=n)
            gan = train_guarded(cfg, source, out, True, *rest)
    stop.end()
    return summarise(gan, source, out, features)


@command
def sagan_sample(
    run:str,                  # run folder, or a checkpoint
    n:int=64,                 # pictures; a grid has whole rows; of neighbours, one in eight is generated
    classes:str=None,         # names or numbers separated by commas (default: all)
    seed:int=0,               # of z
    out:str=None,             # picture to write; .gif animates, DIR/ and .npz take single ones (default: into the run)
    device:str='auto',        # auto, cpu or cuda
    kind:str='grid',          # grid; z or classes: walks; neighbours: nearest real ones; timelapse: of the training
    truncation:float=None,    # cut z at this value (default: the whole normal distribution, as trained)
    steps:int=8,              # pictures along a walk
    data:str=None,            # real pictures for neighbours (default: those of the run)
):
    "Draw pictures from a trained model: one row per class, walks, nearest real pictures, or the training as a film."
    keep_memory()
    out = out or free_path(folder_of(run)/('samples.png' if kind == 'grid' else f'{kind}.png'))
    check_sample_options(kind, n, seed, steps, out)
    moving, how = Path(out).suffix.lower() == '.gif', dict(seed=seed, truncation=truncation)
    home = folder_of(run) if Path(run).exists() else run          # of a checkpoint, its run
    if kind == 'timelapse' and moving: return write_gif(film(kept_samples(home, 100)), out, 400)
    model = open_to_draw(run, pick_device(device))
    wanted, words, at = pick_classes(classes, model.classes), '', [model.step]
    if goes_to_many(out):
        print(write_many(model, wanted, n, out, **how))
        return say_next(('sagan_eval', data or model.cfg.data or 'REAL', out))
    wanted = wanted if classes else shown_classes(wanted, kind, n, steps)
    if kind == 'neighbours': x, words = neighbours_of(model, wanted, n, how, data)
    elif kind == 'timelapse': x, at = timelapse(kept_samples(home, 12), model.cfg.res)
    else: x = sample_rows(model, kind, wanted, n, steps, how)
    if moving: return write_gif(there_and_back(x, max(1, 64 // model.cfg.res)), out)
    names = [model.classes[k] for k in wanted] if model.classes else []
    rows = row_names(kind, len(x), names, model.classes)
    visited = [*names[:10], '...'] if len(names) > 10 else names
    about = {'neighbours': 'generated, then the nearest real ones', 'timelapse': f'to step {at[-1]}',
             'classes': ' > '.join(visited)}
    title = f'{model.cfg.preset}, ' + about.get(kind, f'step {model.step}')
    if truncation: title += f', truncation {truncation:g}'
    columns = x.shape[1] if kind != 'grid' or rows else None
    was = replaces(out)
    path = save_fig(show_grid(x.flatten(0, 1), columns, rows=rows, title=title), out, dpi=150)
    count = f'{x.shape[0]*x.shape[1]} pictures' + (f' of {len(set(rows))} classes' if rows else '')
    print(f'{count} in {path}{was}' + (f'\n{wrap(words)}' if words else ''))
    if kind == 'timelapse': print(wrap(f'steps from left to right: {" ".join(map(str, at))}'))
    walk = [('sagan_sample', run, '--kind', 'classes', '--out', 'walk.gif')] if len(model.classes) > 1 else []
    say_next(*attention_tip(model.G, run), *walk, ('sagan_report', run))


def write_gif(
    frames,                   # uint8, (3, H, W) each
    out,                      # file to write
    ms:int=100,               # milliseconds for each
):
    "Write an animation and say so."
    was = replaces(out)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as part: part.write_bytes(gif(frames, ms))
    print(f'{len(frames)} {"frame" if len(frames) == 1 else "frames"} in {out}{was}')
    say_next('open it in a browser')


@command
def sagan_eval(
    run:str,                  # run folder, a checkpoint, or anybody's SAGAN weights; before FAKE: the real pictures
    fake:Param('generated pictures: folder, zip, pack, .npz; RUN is then the real ones', str,
               opt=False, nargs='?')=None,
    data:str=None,            # real pictures (default: those it was trained on)
    metrics:str='score,distance,intra',      # of score, distance, intra, kid, prdc, diversity, long_range
    features:str='domain',    # domain (a classifier trained on the data), inception, clip, dinov2, or clip:PATH
    protocol:str=None,        # tf2018, biggan, studiogan, mmgen, clean, or all: as others measure
    n_fake:int=None,          # generated pictures (default: 10000; the released protocol: 50000)
    n_real:int=None,          # real pictures, at most (default: 50000, and all there are for intra)
    per_class:int=0,          # generated pictures of each class for intra (default: n_fake over all classes)
    seed:int=0,               # of noise, labels and the choice of real pictures
    labels:str='uniform',     # of generated pictures: uniform, or data: as often as in the data
    floats:bool=False,        # generated pictures as floats, as the released code has them; else rounded to bytes
    res:int=None,             # pixels per side of two sets of pictures (default: of the first generated one)
    out:str=None,             # file to add the records to (default: metrics.json of the run)
    device:str='auto',        # auto, cpu or cuda
):
    "Measure a generator, or anybody's pictures, against real pictures. Interrupted, it goes on where it stopped."
    keep_memory()
    if fake and not out: out = f'{Path(fake).name}-metrics.json'.replace(':', '-')
    out = file_to_write(out or folder_of(run)/'metrics.json')
    ranks, asked, where = Ranks(), [m.strip() for m in metrics.split(',')], pick_device(device)
    check_eval_options(asked, labels, seed, per_class, protocol, features)
    refuse_idle(protocol, fake, dict(metrics=metrics, features=features, n_fake=n_fake, n_real=n_real,
                                     per_class=per_class, labels=labels, floats=floats, data=data, res=res))
    paths = dict(inception=features.partition(':')[2]) if features.startswith('inception:') else {}
    if fake: made, source, about = *open_pair(run, fake, res)[::-1], {}
    else: made, source, about = open_measured(run, data, where)
    if protocol:
        records = by_protocols(protocol, made, source, n_fake, paths, seed=seed, about=about, device=where, ranks=ranks)
    elif fake:
        records = compare(made, source, asked, features, n_real, seed, not floats, device=where, ranks=ranks)
    else:
        n_fake = 10_000 if n_fake is None else n_fake
        records = evaluate(made, source, asked, features, n_fake, n_real, per_class or None,
                           seed=seed, rounding=not floats, labels=labels, about=about, ranks=ranks)
    text = by_protocol_table(records) if protocol else as_table(records)
    print(wrap(f'\n{text}{left_out(records)}\n'))           # first, for where it cannot be written
    if ranks.first: save_records(out, records)
    print(wrap(f'written to {from_here(out)}'))
    other = ('--metrics', 'kid,prdc') if protocol else ('--protocol', 'all')
    if fake: say_next(('sagan_eval', run, fake, *other))
    else: say_next(*attention_tip(made, run), ('sagan_report', run))
    return records


def write_table(
    table:str,                # a key of TABLES
    out:Path,                 # folder of results
    found:dict,               # row -> Config, from `row_configs`
    features:str,             # as of `Job`
    skipped:dict=None,        # row -> why it does not apply
    failed:dict=None,         # job name -> why it has no result
)->str:                       # the same for a terminal
    "Write TABLE.md and its figures from the results that are there and were made by these settings."
    from filelock import FileLock
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out/f'.{table}.lock'):                     # of processes that share the rows, the last one sees all
        results, others = asked_for(collect(out, TABLES[table].rows), found, features)
        names = ', '.join(harmless(o['name']) for o in others)
        left = f'\nLeft out, made by other settings: {names}.\n' if others else ''
        text = markdown(table, results, skipped, failed) + left
        with atomic_write(out/f'{table}.md') as part: part.write_text(text + '\n', encoding='utf-8')
        kind = deciding_measure(TABLES[table], results)
        same = measured_alike(results, TABLES[table].rows, kind)                  # else one axis would mix two measures
        figures = {'': show_pairs(table, results, kind)} if results and same else {}
        if any(o['curve'] for o in results) and same:
            figures['-training'] = show_training(table, results, 'distance' if kind == 'distance' else 'mi')
        if fig := show_samples(table, results, out): figures['-samples'] = fig
        for part, fig in figures.items(): save_fig(fig, out/f'{table}{part}.png')
        for part in {'', '-training', '-samples'} - {*figures}:           # an older table's
            (out/f'{table}{part}.png').unlink(missing_ok=True)
    return show_markdown(text)


def warn_of_others(
    results:list,             # those that are there
    judge,                    # the features that measure what comes
):
    "Say how many of them other features have measured."
    def other(o): return any(r['features'] != 'pixels' and r['features_hash'] != judge.hash for r in o['records'])
    if n := sum(map(other, results)):
        print(f'{n} of {len(results)} results here were measured by other features: new ones cannot be compared')


@with_probe
@command
def sagan_table(
    table:Param('which: table1, table2, fig3, reduction, best, twins, twins_at_8, twins_again, photographs, '
                'photographs_64, fig3_photographs; public: the weights of others', str),
    data:str='pairs',         # pictures
    scale:str='laptop',       # smoke, laptop, gpu or paper
    seeds:str='0',            # seeds, such as 1,2,5 or 10-29
    out:str=None,             # folder of results (default: runs/TABLE-SCALE)
    only:str=None,            # rows, separated by commas (default: all)
    retrain:str=None,         # rows to do anew, separated by commas
    adopt:str=None,           # folder of a finished run that is one of these rows
    minutes:float=0,          # stop after so long, saved; the same command goes on (default: no limit)
    print_commands:bool=False,# only print one command for each row and seed
    plan:Param('only print what it would take: step=SECONDS (default: timed here) gpus=N price=HOUR', str,
               nargs='*')=None,
    power:bool=False,         # only print what the results in --out could have seen (default: results/TABLE)
    features:str='domain',    # as of sagan_eval
    set:Param('settings for all rows alike, as key=value', str, nargs='*', action='extend')=None,
    device:str='auto',        # auto, cpu or cuda
):
    "Train and measure what a table of the paper still lacks, and write the table. `sagan_table probe` asks D alone."
    keep_memory()
    rank, world = apart()
    if table == 'public' or power: return say_stored(table, out, data, scale, features, device)
    rows, numbers, again = asked_rows(table, only, seeds, retrain, adopt, print_commands)
    if adopt and world > 1: raise Refused('--adopt is for one process: adopt the run without torchrun first')
    out = Path(out or f'runs/{table}-{scale}')
    source, found, skipped = rows_of(table, rows, data, scale, set or (), pick_device(device))
    there = [row for row in rows if row in found]
    if plan is not None:
        return say_plan({row: found[row] for row in there}, len(numbers), plan, source, pick_device(device))
    jobs = [Job(replace(found[row], seed=s), features) for s in numbers for row in there]    # an early end leaves pairs
    jobs = jobs[rank::world]                                 # several processes of torchrun share the rows
    if print_commands:
        options = dict(data=data, scale=scale, out=out, features=features, device=device, minutes=minutes)
        return say_commands(table, jobs, options, set)
    print(describe(source))
    where = pick_device(device, any(j.cfg.compiled for j in jobs), any(j.cfg.precision == 'bf16' for j in jobs))
    judge = features_of(features, source, out, where)        # refuses, or learns, before anything is trained
    warn_of_others(asked_for(collect(out, TABLES[table].rows), found, features)[0], judge)
    same = 'The same command without --retrain' if again else 'The same command'
    set_aside([job for job in jobs if job.cfg.preset in again], out, out/'runs')
    if adopt: adopt_run(adopt, jobs, source, out, where)
    hooks = [(1, StopOnSignal(f'{same} goes on.'))]
    if minutes: hooks.append((1, stop_at(time.monotonic() + 60*minutes, f'{same} goes on.')))
    try: failed = run_rows(jobs, source, out, out/'runs', where, hooks)
    except Stopped as e:
        write_table(table, out, found, features, skipped, e.failed)
        raise
    text = write_table(table, out, found, features, skipped, failed)
    print(f'\n{text}\nwritten to {out}: {table}.md, with figures beside it')
    say_next('the same command with other --seeds: more runs join this table',
             *[('sagan_report', out/'runs'/job.name) for job in jobs[:1] if (out/'runs'/job.name).is_dir()])
    say_lost([name for name, why in failed.items() if why != BUSY], len(jobs), f'{same} tries them again', world)


@command
def sagan_pack(
    spec:str,                 # a class-per-folder directory or .zip; with --verify a pack
    res:int=128,              # pixels per side of the packed pictures: 32, 64, 128 or 256
    out:str='pictures.pack',  # pack to write, a folder
    unlabelled:bool=False,    # pictures without classes
    verify:bool=False,        # check every picture of the pack SPEC, and write nothing
):
    "Pack pictures into a folder of .npy files that training maps. Interrupted, it goes on where it stopped."
    if verify: return say_next_of_pack(spec, verify_pack(spec))
    if res not in RESOLUTIONS:
        sizes = f'networks are made for {", ".join(map(str, RESOLUTIONS))} pixels'
        if res < 1 or res & (res - 1): raise Refused(f'{sizes}: choose one of them with --res; got {res}')
        print(f'{sizes}: nothing trains on {res}')
    ranks, was = Ranks(), ' (in place of the pack that was there)' if Path(out).expanduser().exists() else ''
    packed = pack(spec, res, out, unlabelled=unlabelled, place=(ranks.rank, ranks.world))
    if not ranks.first: return
    print(f'{describe(packed)}\npacked into {out}{was}')
    say_next_of_pack(out, res)


def say_next_of_pack(
    path:str,                 # a pack
    res:int,                  # pixels per side of its pictures
):
    "Say what a pack is for: training, or, at a size that no network has, measuring."
    if res in RESOLUTIONS: say_next(('sagan_train', 't1_attn_16', '--data', path, '--set', f'res={res}'))
    else: say_next(('sagan_eval', path, 'GENERATED', '--protocol', 'all'))


@command
def sagan_export(
    run:str,                  # run folder, checkpoint, or anybody's SAGAN weights
    format:str='safetensors', # safetensors or onnx
    out:str=None,             # file to write (default: beside the run)
    push:str=None,            # USER/REPO on the Hugging Face hub, in place of a file; log in there first
    licence:str='',           # for the card of --push, such as cc-by-4.0
    half:bool=False,          # store weights in float16: half the size (safetensors)
):
    "Publish a trained generator."
    if push:
        print(f'published: {push_to_hub(run, push, licence)}')
        return say_next(('sagan_sample', f'hf:{push}', '--out', 'published.png'))
    path = export(run, format, out, half)
    print(f'wrote {path}')
    if format == 'safetensors': say_next(('sagan_sample', path, '--out', 'published.png'))
    else: say_next(f'open it with onnxruntime.InferenceSession({str(path)!r})')


def say_use(
    use:dict,                 # name -> `LayerMaps.use` of each layer
)->str:                       # a line for each layer
    "Is attention used? In words."
    line = ('map {}: {verdict}: what it adds is {ratio:.1%} of what passes through; gamma {gamma:+.3f}; '
            'entropy {entropy:.2f} bits (even: {entropy_even:.2f}); '
            'looks {distance:.1f} px far (even: {distance_even:.1f})').format
    def verdict(o): return 'hardly used' if o['ratio'] < UNUSED else 'used'
    return '\n'.join(line(name, verdict=verdict(o), **o) for name, o in use.items())


@command
def sagan_attention(
    run:str,                  # run folder, checkpoint, or anybody's SAGAN weights
    out:str=None,             # picture to write; a name in .html makes a page to click (default: maps.png of the run)
    queries:Param('auto (for contrast), grid, or pixels as ROW,COLUMN such as 12,40 20,8', str, nargs='*')=None,
    points:int=3,             # queries for each picture, where they are not named
    n:int=4,                  # pictures
    layers:str=None,          # map sizes separated by commas, or all (default: the largest map)
    part:str='G',             # G: pictures it draws; D: real pictures it judges
    data:str=None,            # real pictures for D (default: those of the run)
    classes:str=None,         # names or numbers separated by commas (default: all)
    seed:int=0,               # of the pictures
    device:str='auto',        # auto, cpu or cuda
):
    "Draw what chosen pixels attend to (figures 1 and 5 of the paper)."
    if part not in ('G', 'D'): raise Refused(f'part is {part!r}; choose G or D')
    if not 1 <= n <= 64: raise Refused(f'n must lie in 1..64, got {n}')
    out = out or free_path(folder_of(run)/'maps.png')
    if Path(out).suffix.lower() not in (*FIGURE_SUFFIXES, '.html'):
        raise Refused(f'{out}: the name must end in one of {", ".join((*FIGURE_SUFFIXES, ".html"))}')
    asked = read_queries(queries)
    maps, names = maps_of_run(run, part, n, classes, data, seed, pick_device(device))
    chosen = None if layers is None else [*dict.fromkeys(layers.split(','))]
    if layers == 'all': chosen = list(maps.layers)
    largest = max((maps.pick(m) for m in chosen or [None]), key=lambda o: o.shape[0])
    points = [find_queries(largest, i, asked, points) for i in range(len(maps.pictures))]
    write_attention(maps, names, points, chosen, largest, Path(out))
    to_click = [] if Path(out).suffix.lower() == '.html' else [('sagan_attention', run, '--out', 'maps.html')]
    say_next(*to_click, ('sagan_report', run))


def write_attention(
    maps,                     # AttentionMaps
    names:list,               # a name for each picture
    points:list,              # for each picture, its queries
    layers:list,              # names, or None
    largest:LayerMaps,        # the layer with the largest map of those
    out:Path,                 # .html or a picture
):
    "Write the figure or the page, and say in words what is to be seen."
    was = replaces(out)
    if out.suffix.lower() == '.html':
        out.parent.mkdir(parents=True, exist_ok=True)
        text = '\n'.join(f'<h2>Map {o}</h2>{widget_html(maps, o, names, points)}' for o in layers or [largest.name])
        with atomic_write(out) as part: part.write_text(page('Attention maps', text), encoding='utf-8')
    else: save_fig(show_attention(maps, points, layers=layers, names=names), out, dpi=150)
    print(wrap(say_use({name: o.use() for name, o in maps.layers.items()})))
    for i, asked in enumerate(points):
        print(f'picture {i + 1}' + (f' ({names[i]})' if names else ''))
        print(wrap('  ' + describe_attention(maps, i, asked, largest.name).replace('\n', '\n  ')))
    print(f'queries are row,column from the top left; pictures: {len(points)}, in {out}{was}')


@command
def sagan_report(
    run:str,                  # run folder
    out:str=None,             # page to write (default: report.html in the run folder)
    data:str=None,            # its real pictures (default: where the run found them)
    device:str='auto',        # auto, cpu or cuda
):
    "Put everything about a run on one page that needs no network."
    if out and (Path(out).suffix.lower() not in ('.html', '.htm') or Path(out).is_dir()):
        raise Refused(f'{out}: the page is written to a file whose name ends in .html')
    source = pictures_of(open_run(run).cfg, data) if data else None
    was, path = replaces(out) if out else '', report(run, out, source, device=pick_device(device))
    print(f'wrote {path}{was}')
    say_next('open it in a browser: it needs no network', *attention_tip(open_run(run).G, run))


@command
def sagan_check(
    spec:str,                 # MODULE:NAME or FILE.py:NAME, of yours: its code is run
    what:str=None,            # attention, norm, loss, generator or discriminator (default: guessed by its name)
    args:str=None,            # to build it, such as "64, 'relu'" (default: guessed by its parameters)
    channels:int=64,          # of the map for an attention block
    z_dim:int=128,            # numbers in z, for a generator
    n_classes:int=10,         # classes, for a generator or discriminator
    res:int=32,               # pixels per side, for a discriminator
    strict:bool=False,        # end with exit code 1 where something deviates, or its formula or loss could not be told
):
    "Certify a port: what in somebody's block, norm, loss or network deviates from the paper and its code?"
    thing = find_object(spec)
    kind = what or guess_kind(spec.rpartition(':')[2])
    found = certify(thing, kind, args, dict(channels=channels, z_dim=z_dim, n_classes=n_classes, res=res))
    print(wrap(certificate(spec, kind, found)))
    if not strict: say_next(('sagan_check', spec, '--strict'))
    else: insist(found)


@command
def sagan_bench(
    nets:str='32,128',        # what to time: 32, 128 (minutes a round), paper (128, batch 256: for a GPU), small
    rounds:int=5,             # timed steps of each variant
    against:Param('Python file of another implementation: make_step(res, batch, n_classes); FILE:FOLDER also hands '
                  'on folder', str)=None,
    out:str=None,             # file to write (default: bench.json, or the next free name)
    device:str='auto',        # auto, cpu or cuda
    no_sampling:bool=False,   # leave out sampling at 128 pixels
    brief:bool=False,         # only plain and all changes together
    compiled:bool=False,      # also all changes under torch.compile; minutes to compile, and a C++ compiler
    note:str='',              # what else should be known, for instance who shared the machine
):
    "Time a training step, plain and with each change, in turns (chapter 14)."
    from .bench import bench_all, callable_from
    from ..speed import COMPILED, EAGER, ENDS, NETS, usable_variants
    names = [n for n in nets.split(',') if n]
    unknown = [n for n in names if n not in NETS]
    if unknown or not names: raise Refused(f'there is no net {(unknown or [""])[0]!r}; choose from {", ".join(NETS)}')
    if rounds < 1: raise Refused(f'rounds must be 1 or more, got {rounds}')
    make_step, path = callable_from(against) if against else None, file_to_write(out or free_path('bench.json'))
    was = replaces(path)
    where = pick_device(device, compiled)
    if torch.device(where).index is not None: torch.cuda.set_device(where)      # what is waited for
    wanted = [*(ENDS if brief else EAGER)]
    which = usable_variants(where, [*wanted, *COMPILED] if compiled else wanted)
    def save(result):
        with atomic_write(path) as part: part.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    bench_all(names, rounds, which, make_step, where, not no_sampling, note=note, save=save)
    print(f'\nwritten to {path}{was}')
    say_next(('sagan_bench', '--nets', nets, '--rounds', 2*rounds), 'chapter 14 says what each change does')
