"Serves chapter 15: animations, and the training as a film."
import io

import torch
from torch import Tensor

from ..core import from_uint8, grid_image
from .runs import evenly


def gif(
    frames,                   # pictures uint8, (3, H, W) each, of one size
    ms:int=100,               # milliseconds for each
)->bytes:                     # the file
    "An animation that goes on for ever."
    from PIL import Image
    images, out = [Image.fromarray(f.permute(1, 2, 0).numpy()) for f in frames], io.BytesIO()
    images[0].save(out, 'GIF', save_all=True, append_images=images[1:], duration=ms, loop=0)
    return out.getvalue()


def there_and_back(
    walks:Tensor,             # (rows, steps, 3, res, res)
    zoom:int=1,               # pixels for each pixel
)->list:                      # one grid per frame
    "The frames of an animation: all rows at once, to the end and back."
    times = [*range(walks.shape[1]), *range(walks.shape[1] - 2, 0, -1)]
    def large(x): return x.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    return [grid_image(large(walks[:, t]), min(len(walks), 8)) for t in times]


def timelapse(
    grids:dict,               # from `kept_samples`
    res:int,                  # pixels per side of one picture
    column:int=0,             # which draw of z
    most:int=12,              # steps to show, evenly spaced, first and last among them
)->tuple:                     # pictures (rows, steps, 3, res, res) in [-1, 1], the steps
    "One column of every grid: a row per class, time from left to right."
    steps = evenly(grids, most)
    pitch = res + 2
    def cut(g, r): return g[:, r*pitch + 2:r*pitch + 2 + res, column*pitch + 2:column*pitch + 2 + res]
    rows = range((grids[steps[0]].shape[1] - 2) // pitch)
    return from_uint8(torch.stack([torch.stack([cut(grids[t], r) for t in steps]) for r in rows])), steps


def film(
    grids:dict,               # from `kept_samples`
)->list:                      # frames, uint8, with the step written below
    "Every grid, with its step."
    from PIL import Image, ImageDraw
    import numpy as np
    frames = []
    for t, grid in grids.items():
        image = Image.new('RGB', (grid.shape[2], grid.shape[1] + 14), 'white')
        image.paste(Image.fromarray(grid.permute(1, 2, 0).numpy()), (0, 0))
        ImageDraw.Draw(image).text((3, grid.shape[1]), f'step {t}', fill='black')
        frames.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return frames
