"""Run notebooks in place and store what they print:
`python -m tools.run_nbs nbs/01_spectral_norm.ipynb ...` (no name: all)."""
import base64, io, os, sys
from pathlib import Path

import numpy as np
from PIL import Image
from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.process import NBProcessor


def with_palette(png):
    """A figure as a PNG of 256 colours, a third of the size; as it was where that would be seen, as in a grid of
    photographs."""
    before = Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')
    after, out = before.quantize(256, dither=Image.Dither.NONE), io.BytesIO()
    off = np.abs(np.asarray(after.convert('RGB'), float) - np.asarray(before, float)).mean()
    after.save(out, 'PNG', optimize=True)
    return base64.b64encode(out.getvalue()).decode() if off < .3 else png


def everything():
    "All notebooks, the chapters first: index tells what they found."
    return sorted(get_config().nbs_path.glob('*.ipynb'))


def run(path, flags=()):
    "Execute every cell that `nbdev_test --flags ...` would execute; a skipped cell keeps its stored output."
    off = set(get_config().tst_flags.split()) - set(flags)
    directives = {c['id']: getattr(c, 'directives_', None) or {} for c in NBProcessor(path).nb.cells}

    def skip(cell):
        if cell.cell_type != 'code': return True
        d = directives.get(cell.id, {})
        if off & d.keys() or d.get('eval:', [''])[0].lower() == 'false': return True
        cell.outputs = []                                   # a cell that prints nothing must not keep an old output
    nb, shell = read_nb(path), CaptureShell(path, mpl_format='png')
    def failed(cell):
        if shell.exc: print(f'--- this cell of {path.name} failed:', cell.source, '---', sep='\n', flush=True)

    with working_directory(path.parent): shell.run_all(nb, exc_stop=True, preproc=skip, postproc=failed)
    for data in (o.get('data', {}) for c in nb.cells for o in c.get('outputs', ())):
        if 'image/png' in data: data['image/png'] = with_palette(''.join(data['image/png']))
    nb.metadata['kernelspec'] = dict(name='python3', display_name='python3', language='python')    # or JupyterLab asks
    clean_nb(nb)
    write_nb(nb, path)


if __name__ == '__main__':
    os.environ['MPLBACKEND'] = 'module://matplotlib_inline.backend_inline'
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ['IN_TEST'] = '1'                             # progress bars stay silent, as under nbdev_test
    for path in map(Path, sys.argv[1:] or everything()):
        print(path, flush=True)
        run(path.absolute())
