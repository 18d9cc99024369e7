"""What methods share: twins, banks, BatchNorm over all processes, MoCo's shuffle."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import spawn
from torch import nn

from nearfar.encoders.norm import synchronise
from nearfar.methods import parts


def test_a_twin_follows_by_an_exponential_average_and_takes_no_gradient():
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    copy = parts.twin(net)
    start = copy.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1.0)
    for _ in range(3):
        parts.follow(copy, net, 0.9)
    torch.testing.assert_close(copy.weight, 0.9**3 * start + (1 - 0.9**3) * net.weight.detach())
    assert not copy.weight.requires_grad


def test_usage_counts_prototypes():
    one, even = F.one_hot(torch.zeros(8, dtype=torch.long), 4).float(), torch.full((8, 4), 0.25)
    two = F.one_hot(torch.arange(8) % 2, 4).float()
    assert [round(float(parts.usage(q)), 4) for q in (one, even, two)] == [0.25, 1.0, 0.5]


def test_prototypes_stay_on_the_sphere():
    torch.manual_seed(0)
    p = parts.Prototypes(5, 7)
    z = torch.randn(3, 5)
    torch.testing.assert_close(p(z), F.normalize(z, dim=1) @ F.normalize(p.weight, dim=1).T)
    with torch.no_grad():
        p.weight.mul_(3)
    p.normalise()
    torch.testing.assert_close(p.weight.norm(dim=1), torch.ones(7))


def test_cosine_meets_its_ends():
    values = [parts.cosine(0.99, 1.0, s / 10) for s in range(11)]
    assert values[0] == pytest.approx(0.99)
    assert values[-1] == 1.0
    assert values == sorted(values)
    assert values[5] == pytest.approx(0.995)


def _bank() -> torch.Tensor:
    torch.manual_seed(0)
    from nearfar import dist

    bank = parts.Bank(6, 3)
    z = torch.arange(12, dtype=torch.float32).view(4, 3) + 1
    mine = slice(0, 4) if dist.world() == 1 else slice(2 * dist.rank(), 2 * dist.rank() + 2)
    bank.write(torch.tensor([1, 4, 0, 5])[mine], z[mine], momentum=0.25)
    return torch.cat([bank.rows, bank.seen[:, None].float()], 1)


def test_the_bank_holds_the_rows_of_all_processes():
    one = _bank()
    assert one[:, 3].tolist() == [1, 1, 0, 0, 1, 1]
    torch.manual_seed(0)
    before = parts.Bank(6, 3).rows
    z = F.normalize(torch.arange(12, dtype=torch.float32).view(4, 3) + 1, dim=1)
    torch.testing.assert_close(one[4, :3], F.normalize(0.25 * before[4] + 0.75 * z[1], dim=0))
    for held in spawn(2, _bank):
        torch.testing.assert_close(held, one)


def _norm(x: np.ndarray) -> list:
    """Three training passes of BatchNorm and one in use; output, gradient, running statistics."""
    from nearfar import dist

    torch.manual_seed(0)
    net = synchronise(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(12))).double()
    whole = torch.tensor(x)
    rows = slice(0, len(x)) if dist.world() == 1 else (slice(0, 3), slice(3, len(x)))[dist.rank()]
    for _ in range(3):
        net.zero_grad()
        y = net(whole[rows])
        loss = dist.total((y * whole.flatten(1).repeat(1, 2)[rows][:, :12]).sum())
        loss.backward()
    grads = [dist.total(p.grad) / dist.world() for p in net.parameters()]
    used = net.eval()(whole)
    return [float(loss.detach()), used.detach(), *[g.detach() for g in grads], *[b.clone() for b in net.buffers()]]


def test_batch_norm_over_all_processes_is_that_of_one():
    """Unequal parts, 3 and 5 rows: outputs, gradients and running statistics, against PyTorch's own on the whole."""
    x = np.random.default_rng(0).normal(size=(8, 2, 2, 2))
    one = _norm(x)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.BatchNorm1d(12)).double()
    for _ in range(3):
        plain(torch.tensor(x))
    torch.testing.assert_close(one[1], plain.eval()(torch.tensor(x)).detach())
    for got in spawn(2, _norm, x):
        for a, b in zip(got, one):
            torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-9, atol=1e-9)


def _shuffle() -> tuple:
    from nearfar import dist

    x = torch.arange(8.0).view(8, 1)[4 * dist.rank() : 4 * dist.rank() + 4]
    seen = []

    def encode(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.clone())
        return 10 * part

    return x, parts.shuffled(encode, x, torch.Generator().manual_seed(3)), seen[0]


def test_the_shuffle_deals_rows_among_processes_and_gives_them_back():
    got = spawn(2, _shuffle)
    for x, z, seen in got:
        torch.testing.assert_close(z, 10 * x)
        assert set(seen[:, 0].tolist()) != set(x[:, 0].tolist())  # not its own rows
    assert sorted(torch.cat([g[2] for g in got])[:, 0].tolist()) == list(range(8))
    x = torch.ones(2, 2)
    assert parts.shuffled(lambda a: a, x, torch.Generator()) is x  # one process: nothing to shuffle


def test_torchvisions_resnets_give_maps_whose_mean_are_their_features():
    torchvision = pytest.importorskip("torchvision")
    from nearfar.encoders import image_encoder

    torch.manual_seed(0)
    encoder = image_encoder("torchvision:resnet18", (64, 64, 3), torch.zeros(3), torch.ones(3)).eval()
    torch.manual_seed(0)
    plain = torchvision.models.resnet18()
    plain.fc = nn.Identity()
    plain.conv1, plain.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()  # the stem of small pictures
    plain.load_state_dict(encoder.backbone.net.state_dict(), strict=False)
    x = torch.rand(2, 3, 64, 64)
    maps = encoder.maps(x)
    assert [tuple(m.shape[1:]) for m in maps.values()] == [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8)]
    torch.testing.assert_close(encoder(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
