"Serves chapter 16: what sagan_table says without training: public weights, power, a plan, commands for a cluster."
import json
import sys
from pathlib import Path

from ..ablation import TABLES
from ..config import BOOKKEEPING, at_scale, differences, from_json, preset
from ..core import Refused, choose
from .catalogue import CATALOGUE, place_of
from .jobs import ELSEWHERE, collect
from .lists import typed_text
from .machine import pick_device
from .options import commands, say_next, time_update
from .plan import ANCHORS, given_for_plan, plan_of
from .power import power_text
from .public import public_table


def say_public(
    data:str, scale:str, features:str, device:str,       # as in sagan_table
):
    "Print what is known of public weights, and how to look into those that are here, or the first that can be fetched."
    print(public_table('' if data == 'pairs' else data, scale, features, pick_device(device)))
    known = sorted((name for name, o in CATALOGUE.items() if o.url), key=lambda name: not place_of(name).exists())
    say_next(('sagan_attention', known[0], '--out', 'public.html'))


def shared_settings(
    table:str,                # a key of TABLES
    results:list,             # its runs
)->list:                      # key=value texts
    "List what `--set` was told when these runs were made."
    own, pairs = {*BOOKKEEPING, *ELSEWHERE, *TABLES[table].switches, 'head'} - {'steps'}, {}
    for o in results:
        cfg = from_json(json.dumps(o['config']))
        changed = differences(at_scale(preset(cfg.preset), cfg.scale), cfg, ignore=own)
        told = {name: value for name, (_, value) in changed.items()}
        told['precision'] = cfg.precision                     # it depends on the machine
        for name, value in told.items(): pairs.setdefault(name, set()).add(typed_text(value))
    return [f'{name}={value}' for name, values in pairs.items() for value in sorted(values)[:1]]


def say_power(
    table:str,                # a key of TABLES
    out:Path,                 # folder of results
):
    """Print what a table could have seen, from its result files alone, and the command that says what more seeds would
    take. Raises Refused where there are none."""
    choose(table, TABLES, 'table')
    results = collect(out, TABLES[table].rows)
    if not results: raise Refused(f'{out}: no results of {table} here; say with --out where they are')
    print(power_text(table, results))
    cfg, pairs = results[0]['config'], shared_settings(table, results)
    told = ['--set', *pairs] if pairs else []
    say_next(('sagan_table', table, '--data', cfg['data'], '--scale', cfg['scale'], *told, '--plan'))


def say_stored(
    table:str, out:str, data:str, scale:str, features:str, device:str,       # as in sagan_table
):
    "Print what needs no training: the weights of others, or what the results that are there could have seen."
    if table == 'public': say_public(data, scale, features, device)
    else: say_power(table, Path(out or f'results/{table}'))


def say_plan(
    found:dict,               # row -> Config
    seeds:int,                # runs of each row
    pairs,                    # key=value texts, as of `given_for_plan`
    source,                   # the pictures
    device,                   # where an update is timed, if none is stated
):
    "Print what a table would take, and what others report."
    given = given_for_plan(pairs)
    def seconds(row):
        if given['step']: return given['step']
        print(f'timing an update of {row} here; --plan step=SECONDS leaves that out', flush=True)
        return time_update(found[row], source, device, 60)
    print(plan_of(found, seeds, {row: seconds(row) for row in found}, given['gpus'], given['price']))
    print(ANCHORS)
    say_next('the same command without --plan trains')


def say_commands(
    table:str,                # a key of TABLES
    jobs:list,                # what it needs
    options:dict,             # name -> value, for all alike
    pairs,                    # key=value texts
):
    "Print a command for each run, and as a comment the one that makes the table; what to do next goes to stderr."
    each, last = commands(table, jobs, options, pairs)
    print('\n'.join([*each, f'# when all are done, the table: {last}']), flush=True)
    say_next(last, file=sys.stderr)
