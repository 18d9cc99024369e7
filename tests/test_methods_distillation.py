"""What is true of BYOL, SimSiam, DINO, VICReg, W-MSE and LeJEPA beyond what every method is held to."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from processes import spawn
from torch import nn

from nearfar import methods
from nearfar.encoders import image_encoder
from nearfar.losses import sigreg
from nearfar.losses.features import _whitened
from nearfar.methods.parts import Progress
from nearfar.training import optim

B = 12
INDEX = torch.arange(B)
TWINS = ("byol", "dino")
TINY = {"hidden": 16, "dim": 6, "prototypes": 10, "predictor_hidden": 8, "slices": 4, "warmup_epochs": 2.0}


def build(name: str, **settings) -> nn.Module:
    """A method on a narrow network, in float64."""
    module = methods.module(name)
    known = {k: v for k, v in TINY.items() if k in module.Config.__dataclass_fields__}
    torch.manual_seed(0)
    encoder = image_encoder("cnn", (12, 12, 3), torch.full((3,), 0.5), torch.full((3,), 0.3), width=2)
    return module.Method(encoder, module.Config(**known | settings), 0, B).double().train()


def pictures(method: nn.Module, seed: int = 0, small: int = 2) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    large = [torch.rand(B, 3, 12, 12, generator=g, dtype=torch.float64) for _ in range(method.views)]
    crops = small if getattr(method, "small_views", False) else 0
    return large + [torch.rand(B, 3, 6, 6, generator=g, dtype=torch.float64) for _ in range(crops)]


def at(share: float = 0.0, epoch: float = 0.0) -> Progress:
    return Progress(0, share, epoch, torch.Generator().manual_seed(7))


def forward(method: nn.Module, views: list[torch.Tensor] | None = None, progress: Progress | None = None):
    return method(pictures(method) if views is None else views, INDEX, None, progress or at())


def descend(method: nn.Module, progress: Progress, steps: int = 1, lr: float = 0.1) -> list:
    """Steps on other pictures each time."""
    optimizer, out = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr), []
    for step in range(steps):
        optimizer.zero_grad()
        out.append(forward(method, pictures(method, step), progress))
        out[-1].loss.backward()
        getattr(method, "before_step", lambda progress: None)(progress)
        optimizer.step()
        method.after_step(progress)
    return out


def online(method: nn.Module) -> list[nn.Parameter]:
    """Those that the twin's stand beside, in its order."""
    parts = [method.encoder, method.projector, *([method.prototypes] if hasattr(method, "prototypes") else [])]
    return [p for part in parts for p in part.parameters()]


# --- twins ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWINS)
def test_the_twin_is_the_exponential_average_by_hand(name):
    method = build(name, momentum=0.9)
    average = [p.detach().clone() for p in online(method)]
    for share in (0.0, 0.25, 0.5):
        descend(method, at(share, epoch=5.0))
        m = 1 - (1 - 0.9) * (math.cos(math.pi * share) + 1) / 2  # both papers' schedule
        average = [m * a + (1 - m) * p.detach() for a, p in zip(average, online(method))]
        for mine, its in zip(average, method.twin.parameters()):
            torch.testing.assert_close(its, mine)
    assert any(not torch.equal(a, p) for a, p in zip(average, online(method)))
    still = copy.deepcopy(list(method.twin.parameters()))
    descend(method, at(1.0, epoch=5.0))
    assert all(torch.equal(a, b) for a, b in zip(still, method.twin.parameters()))  # at the end it stands still


@pytest.mark.parametrize("name", TWINS)
def test_no_gradient_reaches_the_twin(name):
    method = build(name)
    forward(method).loss.backward()
    assert all(not p.requires_grad and p.grad is None for p in method.twin.parameters())
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert not any(n.startswith("twin") for n in trained)
    assert all(p.grad is not None for n, p in method.named_parameters() if n in trained)


def test_byol_is_the_squared_distance_both_ways():
    method = build("byol")
    descend(method, at(), steps=2)  # so that twin and network differ
    a, b = pictures(method)
    got = forward(method, [a, b])
    with torch.no_grad():
        p = [method.predictor(method.projector(method.encoder(x))) for x in (a, b)]
        t = [method.twin(x) for x in (a, b)]
        unit = lambda v: v / v.norm(dim=1, keepdim=True)  # noqa: E731
        want = sum(((unit(p[i]) - unit(t[1 - i])) ** 2).sum(1).mean() for i in (0, 1))
    torch.testing.assert_close(got.loss.detach(), want)
    torch.testing.assert_close(forward(method, [b, a]).loss, got.loss)
    assert got.groups.tolist() == INDEX.tolist() * 2


# --- SimSiam ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [True, False])
def test_simsiams_gradient_stops_or_does_not(stop):
    method = build("simsiam", stop_gradient=stop)
    a, b = pictures(method)
    loss = forward(method, [a, b]).loss
    weights = [p for p in method.parameters() if p.requires_grad]
    got = torch.autograd.grad(loss, weights)
    z = [method.projector(method.encoder(x)) for x in (a, b)]
    p = [method.predictor(v) for v in z]
    z = [v.detach() for v in z] if stop else z
    naive = -(F.cosine_similarity(p[0], z[1]).mean() + F.cosine_similarity(p[1], z[0]).mean()) / 2
    torch.testing.assert_close(loss, naive)
    for mine, theirs in zip(got, torch.autograd.grad(naive, weights)):
        torch.testing.assert_close(mine, theirs)


def test_simsiams_predictor_keeps_its_learning_rate():
    method = build("simsiam")
    config = optim.Optim(name="sgd", lr=0.1, warmup=0.0)
    optimizer = optim.build(config, method)
    optim.set_rates(optimizer, config, 0.75)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert all(rates[id(p)] == pytest.approx(0.1) for p in method.predictor.parameters())
    assert all(rates[id(p)] < 0.02 for p in [*method.encoder.parameters(), *method.projector.parameters()]
               if p.requires_grad)  # fmt: skip


def test_simsiams_output_is_normalised_and_collapses_without_the_stop():
    spreads = {}
    for stop in (True, False):
        method = build("simsiam", stop_gradient=stop)
        z = descend(method, at(), steps=60, lr=0.5)[-1].projections
        spreads[stop] = float(F.normalize(z, dim=1).std(0).mean() * math.sqrt(z.shape[1]))  # 1: over the whole sphere
        assert float(z.mean(0).abs().max()) < 1e-9  # BatchNorm without scale and shift of its own
    assert spreads[False] < 0.8 < 0.95 < spreads[True]


# --- DINO -------------------------------------------------------------------------------------------------------


def teacher_outputs(method: nn.Module, views: list[torch.Tensor]) -> torch.Tensor:
    encoder, projector, prototypes = method.twin
    with torch.no_grad():
        return prototypes(F.normalize(projector(encoder(torch.cat(views[:2]))), dim=1))  # (2·B, K)


def test_dinos_centre_is_the_moving_mean_of_what_the_teacher_said():
    method, mean = build("dino", centre_momentum=0.8), torch.zeros(10, dtype=torch.float64)
    for step in range(3):
        said = teacher_outputs(method, pictures(method, step))
        before = method.centre.clone()
        out = forward(method, pictures(method, step))
        assert torch.equal(method.centre, before)  # it moves after the step alone
        out.loss.backward()
        method.after_step(at(0.5))
        mean = 0.8 * mean + 0.2 * said.mean(0)
        torch.testing.assert_close(method.centre, mean)
    assert "centre" in method.state_dict()
    broken = build("dino", centring=False)
    descend(broken, at(), steps=2)
    assert float(broken.centre.abs().max()) == 0


def test_dino_is_the_papers_sum_over_pairs_of_views():
    method = build("dino")
    descend(method, at(), steps=3)
    views = pictures(method, 9)
    said = teacher_outputs(method, views)
    got = forward(method, views, at(epoch=1.0))  # half of the warm-up: 0.04 to 0.07
    assert method.teacher_temperature(1.0) == pytest.approx(0.055)
    p = ((said - method.centre) / 0.055).softmax(1).chunk(2)
    with torch.no_grad():
        h = [method.encoder(torch.cat(part)) for part in (views[:2], views[2:])]
        z = F.normalize(method.projector(torch.cat(h)), dim=1)
        s = (method.prototypes(z) / 0.1).log_softmax(1).chunk(4)
    terms = [-(p[i] * s[v]).sum(1).mean() for i in range(2) for v in range(4) if i != v]
    torch.testing.assert_close(got.loss.detach(), sum(terms) / 6)
    mean = torch.cat(p).mean(0)
    usage = torch.exp(-(mean * mean.log()).sum()) / 10
    torch.testing.assert_close(got.stats["prototype_usage"], usage)
    assert got.stats["chance"] == pytest.approx(math.log(10))
    assert len(got.features) == len(got.projections) == len(got.groups) == 2 * B  # of the large views


def test_dinos_last_layer_stands_still_at_first_and_keeps_its_length():
    for lengths in (False, True):
        method = build("dino", frozen_epochs=1.0, lengths=lengths)
        rows = method.prototypes.weight.detach().clone()
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(10, dtype=torch.float64))
        descend(method, at(epoch=0.9))
        assert torch.equal(method.prototypes.weight, rows)
        descend(method, at(epoch=1.0))
        assert not torch.equal(method.prototypes.weight, rows)
        apart = float((method.prototypes.weight.detach().norm(dim=1) - 1).abs().max())
        assert (apart > 1e-6) == lengths


def test_dinos_temperature_warms_up():
    method = build("dino", warmup_epochs=2.0)
    assert [round(method.teacher_temperature(e), 4) for e in (0, 1, 2, 50)] == [0.04, 0.055, 0.07, 0.07]
    assert build("dino", warmup_epochs=0.0).teacher_temperature(0) == 0.07


# --- features of views ------------------------------------------------------------------------------------------


def silent(method: nn.Module) -> nn.Module:
    """With a projector whose output is the same for all pictures."""
    last = method.projector[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return method


@pytest.mark.parametrize("name", ["vicreg", "lejepa"])
def test_chance_is_the_loss_where_all_pictures_are_one_point(name):
    out = forward(silent(build(name)))
    assert float(out.loss.detach()) == pytest.approx(float(out.stats["chance"]), rel=1e-3)


def test_w_mses_views_are_white():
    method = build("w-mse", dim=4)
    views = pictures(method)
    out = forward(method, views)
    z = out.projections.unflatten(0, (2, B))  # (V, B, dim)
    white = _whitened(z, 0.0)
    torch.testing.assert_close(white.mean(1), torch.zeros(2, 4, dtype=torch.float64))
    torch.testing.assert_close(white.mT @ white / (B - 1), torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
    unit = F.normalize(white, dim=2)
    torch.testing.assert_close(out.loss.detach(), (unit[0] - unit[1]).square().sum(1).mean())
    last = method.projector[-1]  # a shift and a triangular map of the output is undone by whitening
    with torch.no_grad():
        triangle = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).tril(-1)
        triangle += torch.diag(torch.tensor([0.1, 1.0, 3.0, 50.0]).double())
        last.weight.copy_(triangle @ last.weight)
        last.bias.copy_(triangle @ last.bias + 7)
    torch.testing.assert_close(forward(method, views).loss, out.loss, rtol=1e-6, atol=0)


def test_w_mse_takes_more_views_and_slices_of_the_batch():
    method = build("w-mse", samples=3, dim=2, size=4)
    assert method.views == 3
    losses = {float(forward(method, progress=Progress(0, 0.0, 0.0, torch.Generator().manual_seed(s))).loss.detach())
              for s in range(3)}  # fmt: skip
    assert len(losses) == 3  # other slices
    assert len(forward(method).groups) == 3 * B
    with pytest.raises(ValueError, match="samples 1"):
        build("w-mse", samples=1)


def test_lejepa_is_prediction_and_sigreg_of_each_view():
    method = build("lejepa", weight=0.3, large=2)
    views = pictures(method)
    out = forward(method, views)
    with torch.no_grad():
        h = [method.encoder(torch.cat(part)) for part in (views[:2], views[2:])]
        z = method.projector(torch.cat(h)).unflatten(0, (4, B))
        apart = sum((z[v] - (z[0] + z[1]) / 2).square().mean() for v in range(4)) / 4
        g = torch.Generator().manual_seed(7)
        normal = sum(sigreg(z[v], generator=g, slices=4) for v in range(4)) / 4
    torch.testing.assert_close(out.loss.detach(), 0.7 * apart + 0.3 * normal)
    # the middle is no fixed target: it has a gradient of its own
    z = z.requires_grad_()
    (z - z[:2].mean(0)).square().mean().backward()
    assert float(z.grad[:2].abs().max()) > 0


def test_vicreg_takes_one_view_after_the_other():
    method = build("vicreg")
    a, b = pictures(method)
    out = forward(method, [a, b])
    torch.testing.assert_close(out.projections[:B], method.projector(method.encoder(a)))  # BatchNorm saw a alone
    assert float(forward(method, [a, a]).loss.detach()) < float(out.loss.detach())  # no distance is left


# --- iBOT -------------------------------------------------------------------------------------------------------


def masking(**settings) -> nn.Module:
    """iBOT on a transformer of two narrow blocks, 3 × 3 patches of 4 pixels."""
    vit = pytest.importorskip("timm.models.vision_transformer")
    from nearfar.encoders.backbones import _Pooled
    from nearfar.encoders.image import ImageEncoder

    torch.manual_seed(0)
    net = vit.VisionTransformer(img_size=12, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=0,
                                dynamic_img_size=True)  # fmt: skip
    pooled = _Pooled(net, (12, 12, 3), "vit")
    encoder = ImageEncoder(pooled, torch.full((3,), 0.5), torch.full((3,), 0.3))
    module = methods.module("ibot")
    known = {k: v for k, v in TINY.items() if k in module.Config.__dataclass_fields__}
    return module.Method(encoder, module.Config(**known | settings), 0, B).double().train()


def crops(method: nn.Module, seed: int = 0) -> list[torch.Tensor]:
    large, small = pictures(method, seed)[:2], pictures(method, seed)[2:]
    return large + [F.interpolate(v, (8, 8)) for v in small]  # 2 × 2 patches


def test_ibot_with_nothing_hidden_is_dino_and_hidden_patches_add_to_it():
    plain, method = masking(masked=0.0), masking(masked=1.0)
    views = crops(plain)
    assert plain.small_views
    out = forward(plain, views)
    assert float(out.stats["patch_loss"]) == 0
    with torch.no_grad():
        parts = plain.encoder, plain.projector, plain.prototypes  # teacher and student begin alike
        score = lambda x: parts[2](F.normalize(parts[1](parts[0](x)), dim=1))  # noqa: E731
        s = [score(v) for v in views]
        terms = [-((s[i] / 0.04).softmax(1) * (s[v] / 0.1).log_softmax(1)).sum(1).mean()
                 for i in range(2) for v in range(4) if i != v]  # fmt: skip
    torch.testing.assert_close(out.loss.detach(), sum(terms) / len(terms))
    out = forward(method, views)
    assert float(out.stats["patch_loss"]) > 0
    torch.testing.assert_close(out.loss.detach(), out.stats["class_loss"] + out.stats["patch_loss"])
    out.loss.backward()
    assert float(method.token.grad.abs().max()) > 0  # what stands in a hidden patch's place is learnt
    assert all(p.grad is None for p in method.twin.parameters())
    before = method.centres.clone()
    method.after_step(at(0.5))
    assert bool((method.centres != before).any(1).all())  # both have moved
    assert set(dict(method.named_buffers())) & set(method.state_dict()) >= {"centres"}


def test_ibots_student_does_not_see_what_is_hidden():
    from nearfar.encoders.tokens import block_masks, transformer, with_tokens

    method = masking()
    net, x = transformer(method.encoder), pictures(method)[0]
    hidden = torch.zeros(B, 9, dtype=torch.bool)
    hidden[:, 4] = True  # the middle one
    other = x.clone()
    other[:, :, 4:8, 4:8] = 0.5
    got = [with_tokens(method.encoder, net, v, hidden, method.token) for v in (x, other)]
    assert got[0].shape == (B, 10, 8)
    torch.testing.assert_close(got[0], got[1])
    seen = [with_tokens(method.encoder, net, v) for v in (x, other)]
    assert float((seen[0] - seen[1]).detach().abs().max()) > 1e-3
    torch.testing.assert_close(seen[0][:, 0], method.encoder(x))
    assert not net.norm._forward_hooks
    assert not net.patch_embed._forward_hooks
    g = torch.Generator().manual_seed(0)
    masks = block_masks(14, 14, 500, g, share=0.3, spread=0.2, masked=0.5).float()
    shares = masks.mean(1)[masks.any(1)]
    assert 0.4 < float(masks.any(1).float().mean()) < 0.6
    assert float(shares.max()) <= 0.5
    assert 0.25 < float(shares.mean()) < 0.32  # what is left over a little is not hidden


def test_ibot_wants_a_transformer():
    with pytest.raises(ValueError, match="pass --encoder timm:vit_tiny_patch16_224"):
        build("ibot")


def ibots_steps() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Three steps on this process's part of the pictures, by DDP's rule."""
    td = torch.distributed
    world, rank = (td.get_world_size(), td.get_rank()) if td.is_initialized() else (1, 0)
    method, losses, mine = masking(frozen_epochs=0.0), [], INDEX.chunk(world)[rank]
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        progress = Progress(step, step / 3, step / 2, torch.Generator().manual_seed(step))
        out = method([v[mine] for v in crops(method, step)], mine, None, progress)
        optimizer.zero_grad()
        out.loss.backward()
        for p in method.parameters():
            if world > 1 and p.grad is not None:
                td.all_reduce(p.grad)
                p.grad /= world
        optimizer.step()
        method.after_step(progress)
        losses.append(float(out.loss.detach()))
    return losses, method.state_dict()


def test_ibot_on_two_processes_is_one():
    pytest.importorskip("timm")
    one, held = ibots_steps()
    for two, there in spawn(2, ibots_steps):
        assert two == pytest.approx(one, rel=1e-9)
        for key, value in held.items():
            torch.testing.assert_close(there[key], value, rtol=1e-9, atol=1e-9)
