"Serves chapter 15: small charts of a log, and their numbers in words."

LINES = (('#0072B2', '-'), ('#D55E00', '--'), ('#009E73', '-.'), ('#CC79A7', ':'))


def chart(
    lines:dict,               # label -> (steps, values)
    ylabel:str,               # what is drawn, with its unit
    many:bool=False,          # a line for each layer: shades in the order of the layers, first and last named
    level:float=None,         # a value to compare with
):                            # matplotlib Figure
    "One small line chart over the updates of G."
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(4.4, 2.9), layout='constrained')
    shade, ends = plt.colormaps['viridis'], {0, len(lines) - 1}
    if level is not None: ax.axhline(level, color='0.6', lw=1)
    for i, (label, (t, v)) in enumerate(lines.items()):
        color, style = (shade(.9*i/max(1, len(lines) - 1)), '-') if many else LINES[i % len(LINES)]
        mark = '.' if len(t) < 3 else ''
        named = label if not many or i in ends else None
        ax.plot(t, v, style, marker=mark, color=color, lw=1 if many else 1.6, label=named)
    ax.set(xlabel='updates of G', ylabel=ylabel)
    title = 'first and last layer' if many else None
    if lines: ax.legend(loc='upper left', framealpha=.8, edgecolor='none', fontsize=9, title=title)
    return fig


def in_words(
    lines:dict,               # label -> (steps, values)
    most:int=6,               # lines to name
)->str:                       # a sentence
    "A chart for those who do not see it: where each line starts and ends."
    said = [f'{k} from {v[0]:.3g} to {v[-1]:.3g}' for k, (_, v) in list(lines.items())[:most]]
    steps = next(iter(lines.values()))[0]
    return f'Over steps {steps[0]} to {steps[-1]}: ' + ', '.join(said) + (', and more' if len(lines) > most else '')


def series(
    log:list,                 # from `read_log`
    key:str,                  # such as 'loss_d', 'usage_G', 'norms_D'
    number:str=None,          # which of the named numbers of a map, for `usage_`
)->dict:                      # label -> (steps, values); empty where the log has none
    "What a log says of one thing over time, a line for each layer where there are layers."
    lines, net = {}, key.rpartition('_')[2]
    for o in log:
        value = o.get(key)
        if number is not None: value = {f'{net}, map {m}': v[number] for m, v in (value or {}).items() if number in v}
        if value is None: continue
        for label, v in (value if isinstance(value, dict) else {key: value}).items():
            t, values = lines.setdefault(label, ([], []))
            t.append(o['t'])
            values.append(v)
    return lines
