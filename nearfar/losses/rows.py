"""What every loss begins and ends with: checked embeddings with their ids, everybody's candidates, the mean."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from nearfar import dist
from nearfar.errors import NotFinite, UserError

_NOT_FINITE = "holds NaN or infinite values"


class Rows(NamedTuple):
    """My anchors, and the candidates that all of them are held against."""

    z: Tensor  # (n, d) mine
    groups: Tensor  # (n,) mine
    keys: Tensor  # (M, d) of all processes, with gradient
    key_groups: Tensor  # (M,)
    first: int | None  # the anchors are keys[first : first + n]; None where anchors are no candidates


def rows(
    z: Tensor, groups: Tensor, keys: Tensor | None = None, key_groups: Tensor | None = None, *,
    unit: bool = True,
) -> Rows:  # fmt: skip
    """Check and widen embeddings, and gather the candidates of all processes.

    Args:
        z: (n, d) floats; bfloat16 and float16 are taken to float32 (float64 stays).
        groups: (n,) whole numbers: rows with the same id are positives.
        keys, key_groups: (m, d), (m,) the candidates; where they are None the rows themselves are, each
            but itself. Keys that are bit for bit the same on all processes (a queue, a vocabulary) are
            taken as they are; others are parts of a batch and gathered.
        unit: bring rows to length one.

    Raises ``UserError`` naming the argument, on all processes where it is wrong on one.
    """
    mine = checked(z, groups, keys, key_groups, unit=unit)
    return gathered(mine, row_counts(mine))


class Mine(NamedTuple):
    """This process's rows, checked and widened; nothing has been sent but for whether all is well."""

    z: Tensor  # (n, d)
    groups: Tensor  # (n,)
    keys: Tensor | None  # (m, d); None: the rows themselves
    key_groups: Tensor | None  # (m,)
    shared: bool  # are the keys the same on all processes?


def checked(
    z: Tensor, groups: Tensor, keys: Tensor | None, key_groups: Tensor | None, *, unit: bool
) -> Mine:  # fmt: skip
    """The first half of :func:`rows`: everything but the gathering."""
    error = wrong_embeddings("z", z) or wrong_ids("groups", groups, z)
    if error is None and (keys is None) != (key_groups is None):
        error = "keys and key_groups go together: give both or neither"
    if error is None and keys is not None:
        error = wrong_embeddings("keys", keys) or wrong_ids("key_groups", key_groups, keys, "keys")
        if error is None and keys.shape[1] != z.shape[1]:
            error = f"keys are {tuple(keys.shape)} and z is {tuple(z.shape)}: give both the same width"
        elif error is None and keys.device != z.device:
            error = f"keys are on {keys.device} and z on {z.device}: move one of them"
    agree(error, z, () if error else _kind(z, keys))
    z, groups = widened(z, unit), groups.long().contiguous()
    if keys is None:
        return Mine(z, groups, None, None, False)
    key_groups = key_groups.long().contiguous()
    shared = dist.same_everywhere(keys, key_groups)
    keys = widened(keys, unit)
    if keys.dtype != z.dtype:  # one of them is float64
        z, keys = z.double(), keys.double()
    return Mine(z, groups, keys, key_groups, shared)


def row_counts(mine: Mine) -> list[int] | None:
    """How many candidates each process holds; None where all hold the same."""
    if mine.shared:
        return None
    local = mine.z if mine.keys is None else mine.keys
    return [n for (n,) in dist.exchange([len(local)], local.device)]


def gathered(mine: Mine, counts: list[int] | None) -> Rows:
    """The second half of :func:`rows`: the candidates of all processes, ``counts`` as :func:`row_counts` gives them."""
    z, groups, keys, key_groups, _ = mine
    if counts is None:
        return Rows(z, groups, keys, key_groups, None)
    local, ids = (z, groups) if keys is None else (keys, key_groups)
    first = sum(counts[: dist.rank()]) if keys is None else None
    return Rows(z, groups, dist.gather(local, counts), dist.gather(ids, counts), first)


def widened(x: Tensor, unit: bool) -> Tensor:
    """float32 or better, of length one where asked (rows of zeros stay zero)."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return x / lengths(x) if unit else x


def lengths(x: Tensor) -> Tensor:
    """Rows' lengths, 1 for rows of zeros, so that these stay zero and their gradient finite. (N, d) -> (N, 1)"""
    norm = x.norm(dim=1, keepdim=True)
    return torch.where(norm > 1e-12, norm, 1)


def wrong_ids(ids_name: str, ids: Tensor, x: Tensor, name: str = "z") -> str | None:
    """What is wrong with the ids of a matrix of embeddings, or None."""
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        return f"{ids_name} must be a tensor of whole numbers, got {kind}"
    if ids.shape != x.shape[:1]:
        return f"{name} has {len(x)} rows and {ids_name} is {tuple(ids.shape)}: give one id a row, ({len(x)},)"
    if ids.device != x.device:
        return f"{ids_name} is on {ids.device} and {name} on {x.device}: move one of them"
    return None


def wrong_embeddings(name: str, x: Tensor) -> str | None:
    """What is wrong with a matrix of embeddings, or None."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return f"{name} must be a tensor of floats, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}"
    if x.ndim != 2 or x.shape[1] == 0:
        return f"{name} must be (N, d), got {tuple(x.shape)}"
    if torch.compiler.is_compiling():  # no look at values inside a compiled graph
        return None
    with torch.no_grad():
        seen = x.detach().sum(1, dtype=torch.float32 if x.dtype != torch.float64 else None)  # (N,)
        if not bool(seen.isfinite().all()):
            bad = ~x.isfinite().all(1)  # a sum of large values may overflow where none is infinite
            if bool(bad.any()):
                count, first = int(bad.sum()), int(bad.nonzero()[0])
                return f"{name} {_NOT_FINITE} in {count} of {len(x)} rows, the first row {first}"
    return None


def agree(error: str | None, like: Tensor, kind: tuple[int, bool, bool] | tuple[()] = ()) -> None:
    """Raise where any process has an error, on all of them, so that none waits for another for ever.

    This is for what may differ between processes, the rows. Settings (a temperature, a reduction) are code, the same
    on all of them, and checked before anything is sent. ``kind`` is (width, is float64, has keys), which must agree.
    """
    if dist.world() > 1:
        device = like.device if isinstance(like, Tensor) else torch.device("cpu")
        said = dist.exchange([error is not None, _kind_of(error) is NotFinite, *(kind or (0, 0, 0))], device)
        bad = [r for r, (flag, *_) in enumerate(said) if flag]
        if bad and error is None:
            raised = NotFinite if said[bad[0]][1] else UserError
            raise raised(f"process {bad[0]} was given embeddings that cannot be used; its own message says why")
        odd = [r for r, other in enumerate(said) if other != said[0]]
        if odd and not bad:
            raise UserError(f"process 0 was given {_described(*said[0][2:])} and process {odd[0]} "
                            f"{_described(*said[odd[0]][2:])}: give all of them the same")  # fmt: skip
    if error is not None:
        raise _kind_of(error)(error)


def _kind_of(error: str | None) -> type[UserError] | None:
    return None if error is None else NotFinite if _NOT_FINITE in error else UserError


def _kind(z: Tensor, keys: Tensor | None) -> tuple[int, bool, bool]:
    return z.shape[1], torch.float64 in (z.dtype, None if keys is None else keys.dtype), keys is not None


def _described(width: int, double: int, keyed: int) -> str:
    return f"rows of {width} in {'float64' if double else 'float32'} {'with' if keyed else 'without'} keys"


def check_temperature(temperature: float | Tensor, name: str = "temperature") -> None:
    """τ must be a number above 0."""
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1:
            raise UserError(f"{name} must be one number, got a tensor of {tuple(temperature.shape)}")
        if torch.compiler.is_compiling():
            return
    value = float(temperature.detach()) if isinstance(temperature, Tensor) else temperature
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (value > 0 and math.isfinite(value)):
        raise UserError(f"{name} must be a number above 0, got {value!r}")


def check_setting(value: float | Tensor, name: str) -> None:
    """A number above 0 that stays as it is: no gradient would reach it."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise UserError(f"{name} is a setting and is not learnt: give a number, got a tensor that requires grad")
    check_temperature(value, name)


def scalar(value: float | Tensor, like: Tensor) -> Tensor:
    """A number, or a tensor of one value that may learn, as a tensor ()."""
    return value.to(like.device, like.dtype).reshape(()) if isinstance(value, Tensor) else like.new_tensor(value)


def check_number(value: float | Tensor, name: str) -> None:
    """Any finite number, or a tensor of one value."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UserError(f"{name} must be one number, got a tensor of {tuple(value.shape)}")
        if torch.compiler.is_compiling():
            return
        value = float(value.detach())
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value!r}")


def check_unlearnt(value: float | Tensor, name: str) -> None:
    """Any finite number that stays as it is: no gradient would reach it."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise UserError(f"{name} is a setting and is not learnt: give a number, got a tensor that requires grad")
    check_number(value, name)


def check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise UserError(f"reduction {reduction!r}: give 'mean', 'sum' or 'none'")


def reduced(values: Tensor, counted: Tensor, reduction: str) -> Tensor:
    """Anchors' values to the batch's loss. values (n,), counted (n,) bool or weights

    ``mean`` is over the counted anchors of all processes, ``sum`` over all of theirs; both give the same number
    on every process. ``none`` gives this process's own anchors (n,), 0 where they do not count: there a process's
    loss is of its own anchors, and DDP's mean is over the processes' losses. Where no anchor counts the mean is 0,
    with a gradient of 0.
    """
    check_reduction(reduction)
    weight = counted.to(values.dtype)
    values = torch.where(counted > 0, values * weight, 0)
    if reduction == "none":
        return values
    both = dist.total(torch.stack([values.sum(), weight.sum().detach()]))
    return both[0] if reduction == "sum" else both[0] / both[1].detach().clamp(min=1e-12)
