"Serves chapter 15: the page of a run, section by section."
import html
import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attention_maps import attention_layers, attention_maps, describe_attention, show_attention, silenced
from ..config import FIELDS, PRESETS, Config
from ..core import Refused, from_uint8
from ..networks import Generator
from ..report import beside_real, draw_z, walk_classes, walk_z
from ..train import draw, fixed_noise
from .atomic import atomic_write
from .charts import chart, in_words, series
from .door import open_run
from .evaluate import evaluate, run_scores
from .features import Features, domain
from .film import film, gif, there_and_back, timelapse
from .guard import incidents
from .html import STYLE, beside_names, figure_html, figure_tag, image_tag, page, pictures_html, table_html, widget_html
from .lists import typed_text
from .live import live_html
from .options import command_path
from .queries import find_queries
from .runs import kept_samples, machines, pictures_of, read_log, sample_files
from .settings import meaning
from .summary import summary_html


def config_html(
    cfg:Config,               # of the run
    env:dict,                 # env.json
)->str:                       # HTML
    "Settings, each with its meaning and its source, and what it ran on."
    base = asdict(PRESETS[cfg.preset]) if cfg.preset in PRESETS else {}
    base = {name: typed_text(value) for name, value in base.items()}
    rows = [(name, typed_text(getattr(cfg, name)), base.get(name, ''), meaning(f), f.metadata['source'])
            for name, f in FIELDS.items()]
    changed = [r[:4] for r in rows if r[1] != r[2] and r[0] not in ('scale', 'data_id')]
    name = html.escape(cfg.preset)
    head = ['setting', 'here', f'{cfg.preset} at paper scale', 'meaning', 'source of the default']
    def fold(title, table): return f'<details><summary>{title}</summary>{table}</details>'
    return (f'<p>What differs from the row <code>{name}</code> at the scale of the paper:</p>'
            + table_html(head[:4], changed) + fold('All settings', table_html(head, rows))
            + fold('Versions and machine', table_html(['ran on', ''], list(env.items()))))


TRAINING = (                  # keys of the log, which number of a map, what is drawn, a level to compare with, caption
    (('d_real', 'd_fake'), None, 'logit', 0.,
     'What D says of real and of generated pictures. When one player wins, the two part by tens.'),
    (('loss_d', 'loss_g'), None, 'loss', None,
     'Losses say little about quality (chapter 05); a jump says that something broke.'))
USAGE = ('usage_G', 'usage_D')
USE = (
    (USAGE, 'gamma', 'gamma', 0.,
     'gamma starts at 0, and stays there where nothing is learned. Its sign means nothing (chapter 11).'),
    (USAGE, 'ratio', '|gamma o| / |x|', None,
     'What passes through attention, as a share of what passes by. Near 0: not used.'),
    (USAGE, 'entropy', 'entropy of the maps, bits', None,
     'Were the maps even, attention would be a mean over the picture, and the line at log2 of the number of keys.'),
    (USAGE, 'distance', 'distance, pixels', None,
     'How far locations look, on average. A 3x3 convolution in its place would stay within a location or two.'))
SPECTRA = {
    'norms': ('in use', 'One line for each layer. Under spectral norm they lie at 1 or little above; without it they '
              'are free. A jump is the onset of a collapse.'),
    'raw': ('raw', 'The same before the division: what training does to the weights themselves. Without spectral norm '
            'there is no division, and this chart repeats the one before it.')}
NORMS = tuple(((f'{kind}_{net}',), None, f'{net}: largest singular value, {what}', None, caption)
              for net in 'GD' for kind, (what, caption) in SPECTRA.items())


def curves_html(
    log:list,                 # from `read_log`
    wanted:tuple,             # charts, such as TRAINING
)->str:                       # HTML
    "Small charts of what the log has; what it lacks is left out."
    out = []
    for keys, number, ylabel, level, caption in wanted:
        lines = {k: v for key in keys for k, v in series(log, key, number).items()}
        if not lines: continue
        fig = chart(lines, ylabel, wanted is NORMS, level)
        out.append(figure_html(figure_tag(fig, f'{ylabel}. {in_words(lines)}.', dpi=160), caption))
    return f'<div class=charts>{"".join(out)}</div>'


def samples_html(
    G:Generator,              # from `sampler`
    cfg:Config,               # of the run
    names:list,               # class names
)->str:                       # HTML
    "A grid, walks, and truncation."
    rows, names = list(range(min(max(cfg.n_classes, 1), 10))), names[:10]
    listed = ', '.join(names) or 'no classes'
    grid = draw(G, *fixed_noise(cfg)).unflatten(0, (len(rows), -1))
    out = [pictures_html(grid, f'Generated pictures, one row per class: {listed}',
        'One row per class, one z per column. Were the class ignored, rows would look alike; '
        'were z ignored, columns would.', names)]
    walk = walk_z(G, rows, 10, cfg.seed)
    out.append(pictures_html(walk, 'Walks between two z, one row per class',
        'From one z to another, the same road for every class. Learned pictures would jump from one to the next; '
        'a learned world changes little by little.', names))
    out.append(moving_html(walk, listed))
    if len(rows) > 1: out.append(pictures_html(walk_classes(G, rows, 12, cfg.seed, 4), f'Walks through {listed}',
        f'From class to class ({listed}), one z per row. What lies between two classes was never trained. Were '
        'pictures mixed in place of classes, one would shine through the next.', [f'z {i}' for i in range(1, 5)]))
    y = torch.arange(12) % len(rows)
    cut = torch.stack([draw(G, draw_z(12, cfg.z_dim, cfg.seed, tau), y) for tau in (None, 1., .5, .1)])
    out.append(pictures_html(cut, 'Four rows of pictures, truncated more and more',
        'Truncation: z as trained, then cut off. Variety falls from row to row; if it did not, z would be ignored.',
        ['as trained', 'cut at 1', 'cut at 0.5', 'cut at 0.1']))
    return ''.join(out)


def moving_html(
    walk:Tensor,              # from `walk_z`
    listed:str,               # class names
)->str:                       # HTML
    "A walk as an animation."
    alt, frames = f'The same walk, animated, for {listed}', there_and_back(walk, 2)
    tag = image_tag(gif(frames), 'gif', alt, 150*min(len(walk), 8))
    return figure_html(tag, f'The same road, walked there and back: {listed}. Pictures learned by heart would jump.')


FRAMES = 24               # of the film of a training: a page carries them


def film_html(
    run,                      # run folder
    cfg:Config,               # of the run
    names:list,               # class names
)->str:                       # HTML; empty where the run kept no samples
    "The training, from its fixed noise."
    try: grids = kept_samples(run, FRAMES)
    except Refused: return ''
    strip, steps = timelapse(grids, cfg.res)
    (wide, names), pitch = (next(iter(grids.values())).shape[2], names[:10]), cfg.res + 2
    alt = 'All of the fixed noise over training, animated'
    moving = image_tag(gif(film(grids), 400), 'gif', alt, 2*wide, 40*wide // pitch)
    return (pictures_html(strip, f'Fixed noise at steps {steps}',
                          f'The same noise at steps {", ".join(map(str, steps))}, one row per class. Pictures that no '
                          'longer change say that training has stopped; from other noise, each would differ.', names)
            + figure_html(beside_names(moving, names, 14/pitch), 'As a film. After a collapse, columns are alike.'))


def incidents_html(
    run:Path,                 # run folder
)->dict:                      # title -> HTML; empty where nothing happened
    "What went wrong on the way, when, what was done about it, and the last samples before it."
    happened = incidents(run)
    if not happened: return {}
    done = dict(go='it went on', stop='it was stopped', back='it went back to the last good checkpoint')
    rows = [(o['t'], o['words'], 'none' if o['good'] is None else o['good'], done[o['action']]) for o in happened]
    table = table_html(['step', 'what was seen', 'last good checkpoint', 'what was done'], rows)
    try: grids = kept_samples(run, steps=[t for t in sample_files(run) if t <= (happened[0]['good'] or 0)][-1:])
    except Refused: grids = {}
    if not grids: return {'Incidents': table + '<p>No samples were drawn before it.</p>'}
    at, x = max(grids.items())
    tag = image_tag(gif([x], 400), 'gif', f'Samples at step {at}', 2*x.shape[2], x.shape[2])
    caption = f'The last samples before it, at step {at}: one row per class.'
    return {'Incidents': table + figure_html(tag, caption, wide=True)}


def maps_html(
    net:nn.Module,            # generator or discriminator
    x:Tensor,                 # noise, or pictures
    y:Tensor,                 # classes
    names:list,               # class names
    title:str,                # of the figure
)->str:                       # HTML; empty without attention
    "Attention maps of the largest map, as a figure and as a page to click."
    try: maps = attention_maps(net, x, y)
    except Refused: return ''
    labels, o = [names[k] for k in y] if names else [], maps.pick()
    asked = [find_queries(o, i, 'auto', 3) for i in range(len(x))]
    words = '. '.join(f'Picture {i + 1}: {describe_attention(maps, i, q)}' for i, q in enumerate(asked))
    tag = figure_tag(show_attention(maps, asked, names=labels), words.replace('\n', '; '), dpi=150)
    caption = (f'{title}: three queries in each picture, chosen for contrast, and what they attend to at the '
               f'{o.shape[0]}x{o.shape[1]} map. Even attention would have no arrows; a map that was transposed or '
               'shifted would ignore what lies in the picture.')
    head = ['map', 'gamma', '|gamma o| / |x|', 'entropy, bits', 'distance, px', 'entropy if even', 'distance if even']
    click = widget_html(maps, names=labels, fallback='')
    return (f'<h3>{title}</h3>' + figure_html(tag, caption, wide=True)
            + table_html(head, [(name, *o.use().values()) for name, o in maps.layers.items()])
            + figure_html(click, 'The map of any pixel, made here from queries and keys. Asked at a dot of the figure '
                          'above, a wrong map would not agree with it.'))


def play_html(
    G:Generator,              # from `sampler`
    names:list,               # of the classes
)->str:                       # HTML; empty where the script cannot compute this generator
    "The generator itself, to draw with."
    try: live = live_html(G, names, fallback='<p>To draw here, let scripts run.</p>')
    except Refused: return ''
    asked = 'Click a pixel of the picture, or move with the arrow keys: right, what it attends to. ' if G.extra else ''
    return figure_html(live, f'This generator, computed in the page: from one noise to another, in any class. {asked}'
                       'A script that computed something else would draw other pictures than the samples.')


def silence_html(
    G:Generator,              # from `sampler`
    cfg:Config,               # of the run
)->str:                       # HTML; empty without attention
    "The pictures with and without attention."
    try: attention_layers(G)
    except Refused: return ''
    z, y = draw_z(12, cfg.z_dim, cfg.seed), torch.arange(12) % max(cfg.n_classes, 1)
    whole = draw(G, z, y)
    with silenced(G): without = draw(G, z, y)
    change = (whole - without).abs()
    return pictures_html(torch.stack([whole, without, change - 1]), 'With attention, without it, and the difference',
        f'As trained; with gamma set to 0; and the difference, {change.mean()*127.5:.1f} of 255 levels on average. '
        'An attention layer that is not used would leave the last row black.', ['trained', 'gamma = 0', 'difference'])


def silenced_numbers(
    G:Generator,              # from `sampler`
    source,                   # real pictures
    features:Features,        # whose numbers
    n:int=1000,               # pictures of each kind, at most
)->str:                       # HTML; empty without attention
    "Metrics with attention and without it."
    try: attention_layers(G)
    except Refused: return ''
    def numbers(): return evaluate(G, source, ('distance', 'prdc'), features, n_fake=n, n_real=n, cache=None)
    whole = numbers()
    with silenced(G): without = numbers()
    how = (f'{n} generated and {whole[0]["n_real"]} real pictures, {features.name}, seed {whole[0]["seed"]}. What '
           'these weights do without their attention; a network trained without it may do better (Table 1).')
    rows = [(a['metric'], a['value'], b['value']) for a, b in zip(whole, without)]
    return table_html(['metric', 'as trained', 'gamma = 0'], rows) + f'<p>{html.escape(how)}</p>'


def metrics_html(
    run:Path,                 # run folder
)->str:                       # HTML
    "The numbers of a run, each with how it was made."
    try: records = run_scores(run)
    except Refused: return '<p>metrics.json is damaged: delete it, and <code>sagan_eval</code> makes it anew.</p>'
    if not records:
        how = html.escape(command_path('sagan_eval', run))
        return f'<p>No metrics yet: <code>{how}</code> makes them.</p>'
    def number(v): return float(v) if isinstance(v, (int, float)) else v or ''
    more = dict(features='pixels', n_fake='', n_real='', step='', seed='')
    rows = [(o['metric'], number(o['value']), number(o.get('real')), *(o.get(k, v) for k, v in more.items()))
            for o in records]
    def stamp(o): return html.escape(json.dumps({k: v for k, v in o.items() if k != 'per_class'}))
    stamps = ''.join(f'<dt>{html.escape(o["metric"])}</dt><dd><code>{stamp(o)}</code></dd>' for o in records)
    head = ['metric', 'generated', 'real', 'features', 'n generated', 'n real', 'step', 'seed']
    return table_html(head, rows) + f'<details><summary>How each number was made</summary><dl>{stamps}</dl></details>'


def sections(
    run:Path,                 # run folder
    model,                    # from `open_run`
    source,                   # real pictures, or None
    features,                 # features used to find nearest neighbours, or None
)->dict:                      # title -> HTML
    "All that the page shows, in order."
    log, cfg, G, names = read_log(run/'log.jsonl'), model.cfg, model.G, model.classes
    z, y = draw_z(4, cfg.z_dim, cfg.seed), torch.arange(4) % max(cfg.n_classes, 1)
    out = {'Summary': summary_html(run, cfg, model.step, G, names, log)}
    out |= incidents_html(run)
    out |= {'Samples': samples_html(G, cfg, names) + film_html(run, cfg, names)}
    if live := play_html(G, names): out |= {'Draw': live}
    attention = maps_html(G, z, y, names, 'Generator')
    if features is not None:
        noise, asked = fixed_noise(cfg, 2, 4)
        pairs, say = beside_real(draw(G, noise, asked), source, features)
        out['Did it copy?'] = pictures_html(pairs, 'Generated pictures and their nearest real ones',
            f'First column: generated; then the nearest real pictures, nearest first. {say} Were the search wrong, the '
            'neighbours in a row would have nothing in common.', [names[k] for k in asked] if names else [])
    if source is not None:
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(cfg.seed))
        real, y = source.batch(order[:4])
        attention += maps_html(model.D, from_uint8(real), y, names, 'Discriminator, on real pictures')
    if attention:
        used = '' if features is None else silenced_numbers(G, source, features)
        out |= {'Attention': attention, 'Is attention used?': curves_html(log, USE) + silence_html(G, cfg) + used}
    return out | {'Training': curves_html(log, TRAINING), 'Singular values': curves_html(log, NORMS),
                  'Metrics': metrics_html(run), 'Configuration': config_html(cfg, machines(run)[0])}


def report(
    run,                      # run folder
    out=None,                 # file to write; None: report.html in the run folder
    source=None,              # its real pictures; None: opened as its settings say, left out where they are not there
    features:Features=None,   # features used to find nearest neighbours; None: the domain classifier (chapter 10)
    device='cpu',             # where to draw
)->Path:                      # the file
    "Write one page with everything about a run. Raises Refused for a folder without a run."
    run = Path(run)
    if not run.is_dir(): raise Refused(f'{run}: there is no such run folder')
    path, model, note = Path(out or run/'report.html'), open_run(run, device), ''
    cfg = model.cfg
    try: source = source or pictures_of(cfg)
    except Refused as e: note = f' The real pictures are not here ({e}), so what needs them is left out.'
    try: features = None if source is None else features or domain(source, device=device)
    except Refused as e: note = f' Distances are left out ({e}).'
    title, body = f'{cfg.preset}, {cfg.scale} scale, step {model.step}', sections(run, model, source, features)
    def anchor(name): return ''.join(c for c in name.lower() if c.isalpha())
    links = ''.join(f'<a href="#{anchor(k)}">{k}</a>' for k in body)
    parts = ''.join(f'<section id={anchor(k)}><h2>{k}</h2>{v}</section>' for k, v in body.items())
    norm = f'standing statistics over {cfg.standing}' if cfg.standing else 'moving averages'
    about = (f'{cfg.data} at {cfg.res}x{cfg.res}, seed {cfg.seed}, {"averaged weights, " if cfg.ema else ""}{norm}. '
             f'One seed decides nothing.{note}')
    whole = f'<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p><nav>{links}</nav>{parts}'
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part: part.write_text(page(title, whole, STYLE), encoding='utf-8')
    return path
