"""BatchNorm over the rows of all processes, on any device and back end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nearfar import dist


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    r"""Batch normalisation with mean and variance of the whole batch: P processes normalise as one would.

    .. math:: \hat x = \frac{x-\mu}{\sqrt{\sigma^2+\epsilon}},\qquad \mu=\frac1N\sum_p\sum_{i\in p}x_i,\quad
              \sigma^2=\frac1N\sum_p\sum_{i\in p}(x_i-\mu)^2

    Ioffe & Szegedy 2015. PyTorch's own SyncBatchNorm wants a GPU. (B, C, …) -> (B, C, …)
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions from two up."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or dist.world() == 1:
            return super().forward(x)
        wide = x if x.dtype == torch.float64 else x.float()
        axes = [0, *range(2, x.ndim)]
        column = (1, -1, *[1] * (x.ndim - 2))
        count = wide.numel() // wide.shape[1]
        n = sum(c for (c,) in dist.exchange([count], x.device))
        mean = dist.total(wide.sum(axes)) / n  # (C,)
        apart = wide - mean.view(column)
        var = dist.total(apart.square().sum(axes)) / n  # (C,)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                m = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.detach().to(self.running_mean), m)
                self.running_var.lerp_((var.detach() * n / max(n - 1, 1)).to(self.running_var), m)
        out = apart * (var + self.eps).rsqrt().view(column)
        if self.affine:
            out = out * self.weight.view(column) + self.bias.view(column)
        return out.to(x.dtype)


def synchronise(module: nn.Module) -> nn.Module:
    """The module with every BatchNorm taking the statistics of all processes' rows; weights and names stay.

    On a GPU they are PyTorch's ``SyncBatchNorm``, elsewhere ours. In one process nothing changes.

    >>> net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    >>> sorted(synchronise(net).state_dict()) == sorted(net.state_dict())
    True
    """
    if any(p.is_cuda for p in module.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, part in list(module.named_children()):
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            fresh = _Synchronised(part.num_features, part.eps, part.momentum, part.affine, part.track_running_stats)
            fresh.__dict__.update(part.__dict__)  # the same parameters and buffers
            setattr(module, name, fresh)
        else:
            synchronise(part)
    return module


@contextmanager
def measured(module: nn.Module) -> Iterator[None]:
    """Within it, forward passes in training mode measure BatchNorm's statistics anew, as plain averages.

    So an untrained encoder is judged at its best. Afterwards the module is in evaluation mode.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain average
    module.train()
    yield
    for m, momentum in zip(norms, momenta):
        m.momentum = momentum
    module.eval()
