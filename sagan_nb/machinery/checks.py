"Serves chapter 10: what features, logits and given statistics must be, before anything is computed from them."
import torch
from torch import Tensor

from ..core import Refused


def check_shape(
    x:Tensor,                 # features or logits, (n, d)
    least:int=1,              # fewest rows that will do
    what:str='features',      # for the message
)->tuple[int,int]:            # n, d
    "Check for a matrix of floats with enough rows. Raises Refused for anything else."
    if not isinstance(x, Tensor): raise Refused(f'{what} must be a torch tensor, got {type(x).__name__}')
    if x.ndim != 2 or not x.is_floating_point():
        raise Refused(f'{what} must be a matrix of floats, one row per picture; got {tuple(x.shape)}, {x.dtype}')
    if len(x) < least: raise Refused(f'{what} of {len(x)} pictures: at least {least} are needed')
    return tuple(x.shape)


def check_rows(
    x:Tensor,                 # features or logits, (n, d)
    least:int=1,              # fewest rows that will do
    what:str='features',      # for the message
)->Tensor:                    # the same values
    "Check for a matrix of finite numbers with enough rows. Raises Refused for anything else, with the first bad row."
    check_shape(x, least, what)
    bad = (~x.isfinite()).any(1).nonzero()
    if len(bad): raise Refused(f'{what} hold values that are not finite numbers, first in row {int(bad[0])}')
    low, high = x.aminmax()                              # no copy of all features, as abs() would make
    if max(-low, high) > 1e150: raise Refused(f'{what} are too large: their squares are no finite numbers')
    return x


def check_widths(
    x:Tensor,                 # features, (n, d)
    y:Tensor,                 # others, (m, e)
):
    "Raise Refused unless d = e."
    d, e = check_shape(x)[1], check_shape(y)[1]
    if d != e: raise Refused(f'features of widths {d} and {e} cannot be compared')


def check_covariance(
    mean:Tensor,              # (d)
    covariance:Tensor,        # (d, d)
    n:int,                    # images they were gathered from
)->tuple[Tensor,Tensor]:      # both in float64
    "Check given statistics. Raises Refused for a matrix that cannot be the covariance of n images."
    if n < 2: raise Refused(f'a covariance needs at least 2 pictures, got {n}')
    mean, S = (torch.as_tensor(o, dtype=torch.float64) for o in (mean, covariance))
    mean, S = check_rows(mean[None])[0], check_rows(S)
    if S.shape != 2*mean.shape: raise Refused(f'a mean of {len(mean)} features and a matrix {tuple(S.shape)}')
    size = S.abs().max()
    if (S - S.T).abs().max() > 1e-6*size: raise Refused('the matrix is not symmetric: it is no covariance')
    values = torch.linalg.eigvalsh(S)
    if values[0] < -1e-6*size: raise Refused('the matrix has a negative eigenvalue: it is no covariance')
    if n <= len(values) and values[-n] > 1e-6*size:
        raise Refused(f'a covariance of {n} pictures has rank {n - 1} at most, and this matrix has more')
    return mean, S
