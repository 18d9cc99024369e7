"""Everything that going on to the bit needs, as tensors and JSON: gathered from all processes, and put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nearfar import dist


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU in plain layout, of shards the whole. All processes call it."""
    whole = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()}
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in whole.items()}


def of_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its state as tensors named ``optimizer.PARAMETER.WHAT``, and what is no tensor."""
    tensors, rest = {}, {}
    for i, held in optimizer.state_dict()["state"].items():
        for what, value in held.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{i}.{what}"] = value
            else:
                rest[f"{i}.{what}"] = value
    return tensors, rest


def to_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Put its state back; rates and decays are set at each step."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, what = name.split(".", 2)
            state.setdefault(int(i), {})[what] = value
    for name, value in rest.items():
        i, what = name.split(".", 1)
        state.setdefault(int(i), {})[what] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, held in state.items():
        for what, value in held.items():
            if isinstance(value, Tensor) and value.shape == parameters[i].shape:
                held[what] = _placed(value, parameters[i].detach())
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def to_method(method: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put weights and buffers back, in place."""
    held = method.state_dict()
    method.load_state_dict({name: _placed(t, held[name]) if name in held else t for name, t in tensors.items()})


def _placed(value: Tensor, like: Tensor) -> Tensor:
    """The values of one in the layout and the shards of the other: fused optimisers walk through memory as it lies."""
    if hasattr(like, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return torch.empty_like(like, dtype=value.dtype).copy_(value) if value.shape == like.shape else value


def of_generators() -> dict[str, Tensor]:
    """PyTorch's own generators' states, of every process: dropout draws from them. All processes call it."""
    found = {f"random.cpu.{r}": state for r, state in enumerate(dist.each(torch.get_rng_state()))}
    if torch.cuda.is_initialized():
        found |= {f"random.cuda.{r}": state for r, state in enumerate(dist.each(torch.cuda.get_rng_state()))}
    return found


def to_generators(tensors: Mapping[str, Tensor]) -> bool:
    """Put this process's generators back; False where there was no such process."""
    mine = tensors.get(f"random.cpu.{dist.rank()}")
    if mine is not None:
        torch.set_rng_state(mine)
    if (on_gpu := tensors.get(f"random.cuda.{dist.rank()}")) is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(on_gpu)
    return mine is not None
