"""On what a recipe is trained: processes, devices, compilation, memory. Lightning Fabric does the work."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nearfar.errors import UserError, at_least, nearest

if TYPE_CHECKING:
    from torch import nn

STRATEGIES = ("auto", "ddp", "fsdp")


@dataclass(frozen=True)
class Engine:
    """What a machine decides and a recipe does not."""

    devices: int = 0
    """processes on this machine, each with a GPU where there are GPUs; 0: one, or as torchrun or SLURM started"""
    nodes: int = 1
    """machines; start the same command on each with torchrun or srun"""
    strategy: str = "auto"
    """auto, ddp or fsdp (weights, gradients and the optimiser's state in shards)"""
    compile: bool = False
    """compile the encoder (torch.compile)"""
    chunk: int = 0
    """images that the encoder is given at a time, gradients by gradient caching; 0: all, less where memory is short"""
    workers: int = 1
    """threads that read batches ahead; 0: each is read when its turn comes"""
    checkpoint_minutes: float = 1.0
    """time between checkpoints"""
    keep: int = 2
    """how many of the last checkpoints are kept, beside the best by the online kNN"""
    skip_nan: bool = False
    """leave out a step whose loss or gradient is not finite, and count it, instead of stopping"""

    def __post_init__(self) -> None:
        at_least(self, devices=0, nodes=1, chunk=0, workers=0, keep=1)
        if not self.checkpoint_minutes > 0:
            raise UserError(f"checkpoint_minutes = {self.checkpoint_minutes} must be above 0")
        if self.strategy not in STRATEGIES:
            raise UserError(f"unknown strategy {self.strategy!r}{nearest(self.strategy, STRATEGIES)}")


def launch(engine: Engine, precision: str) -> Any:
    """A launched ``Fabric``: with several devices the script or command is started once for each of them.

    Raises ``UserError`` where there are fewer GPUs than asked for, or another number of processes than was started.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import TorchElasticEnvironment

    from nearfar import dist

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision
    started = TorchElasticEnvironment.detect()
    if started:
        here, nodes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("GROUP_WORLD_SIZE", "1"))
        if engine.devices not in (0, here):
            raise UserError(f"--devices {engine.devices}: torchrun started {here} processes here: leave it out")
    else:
        here, nodes = engine.devices or _slurm_tasks() or 1, engine.nodes
    try:
        fabric = Fabric(accelerator="auto", devices=here, num_nodes=nodes, precision=precision,
                        strategy=_strategy(engine.strategy, here * nodes))  # fmt: skip
    except Exception as error:  # Fabric raises all kinds
        raise UserError(f"--devices {here} --nodes {nodes} --strategy {engine.strategy}: {error}") from None
    if started and here * nodes > 1:  # before Fabric does, which knows nothing of restarts
        dist.start("nccl" if fabric.device.type == "cuda" else "gloo")
    fabric.launch()
    return fabric


def _slurm_tasks() -> int:
    """Processes that srun has started on this machine."""
    from lightning_fabric.plugins.environments import SLURMEnvironment

    return int(os.environ.get("SLURM_NTASKS_PER_NODE", "1")) if SLURMEnvironment.detect() else 0


def _strategy(name: str, world: int) -> Any:
    if world == 1:
        return "auto"
    from lightning_fabric import strategies

    if name == "fsdp":
        return strategies.ModelParallelStrategy(_shard, world, 1)
    return strategies.DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)


def _shard(model: nn.Module, mesh: Any) -> nn.Module:
    """Every weight in shards of its rows, gathered for the time of a forward and a backward (FSDP2)."""
    import torch
    from torch.distributed.fsdp import fully_shard

    for p in model.parameters():  # shards have plain layout
        p.data = p.data.contiguous(memory_format=torch.contiguous_format)
    return fully_shard(model, mesh=mesh["data_parallel"])


def shape(method: nn.Module, engine: Engine) -> None:
    """Compile the encoder, as asked for."""
    if engine.compile:
        import torch

        if not torch.cuda.is_available() and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
            raise UserError("--compile needs a C++ compiler on a CPU (g++ or clang++): install one or leave it out")
        method.encoder.forward = torch.compile(method.encoder.forward)
