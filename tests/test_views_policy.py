"""Policies: data that round-trips and is checked; what is drawn follows them, torchvision's where it draws the same."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from nearfar import recipe as recipes
from nearfar.build import resolve
from nearfar.data import open_source
from nearfar.recipe import Recipe
from nearfar.views.draw import draw
from nearfar.views.policies import POLICIES, named, plan_of
from nearfar.views.policy import ImagePolicy, as_views, lay_out

N = 20_000


def drawn(n=N, **values):
    return draw((ImagePolicy(**values),), n, torch.Generator().manual_seed(0))


def uniform(values, low, high):
    """Kolmogorov and Smirnov find no difference from the uniform distribution."""
    assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0), (0.5, 1.0), (0.05, 0.14), (0.5, 0.8)])
def test_crops_are_drawn_as_torchvision_draws_them(scale):
    """Area, ratio and place, on a picture so large that torchvision's rounding to pixels does not show."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(8, scale=scale)
    large = torch.empty(1, 20_000, 20_000, device="meta")
    got = [theirs.make_params([large]) for _ in range(4000)]
    top, left, height, width = (np.array([g[k] for g in got]) / 20_000 for k in ("top", "left", "height", "width"))
    ours = drawn(crop_min=scale[0], crop_max=scale[1])
    h, w = ours.height.numpy(), ours.width.numpy()
    for mine, other in ((h * w, height * width), (np.log(w / h), np.log(width / height)),
                        (ours.centre_y.numpy() - h / 2, top), (ours.centre_x.numpy() - w / 2, left)):  # fmt: skip
        assert stats.ks_2samp(mine, other).pvalue > 1e-3
    assert (h <= 1).all()
    assert (w <= 1).all()
    assert (h * w >= scale[0] - 1e-5).all()


def test_one_area_and_one_ratio():
    whole = drawn(100, crop_min=1.0)
    assert float(whole.height.min()) > 0.999
    half = drawn(100, crop_min=0.25, crop_max=0.25, crop_ratio=1.0)
    torch.testing.assert_close(half.height, torch.full((100,), 0.5))
    torch.testing.assert_close(half.width, torch.full((100,), 0.5))
    uniform(drawn(crop_min=0.25, crop_max=0.25, crop_ratio=1.0).centre_x, 0.25, 0.75)


@pytest.mark.parametrize(("name", "column", "happened"), [
    ("flip", "flip_x", lambda v: v > 0), ("flip_vertical", "flip_y", lambda v: v > 0),
    ("colour", "brightness", lambda v: v != 1), ("grey", "grey", lambda v: v > 0), ("blur", "sigma", lambda v: v > 0),
    ("solarise", "solarise", lambda v: v <= 1), ("posterise", "bits", lambda v: v < 8),
    ("equalise", "equalise", lambda v: v > 0), ("erase", "bottom", lambda v: v > 0),
])  # fmt: skip
@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_probabilities(name, column, happened, p):
    share = float(happened(getattr(drawn(**{name: p}), column)).float().mean())
    assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / N) + 1e-9)


def test_amplitudes_are_uniform():
    d = drawn(colour=1, brightness=0.4, contrast=1.3, saturation=0.2, hue=0.1, rotate=30, blur=1, blur_min=0.5,
              blur_max=3, noise=0.2)  # fmt: skip
    uniform(d.brightness, 0.6, 1.4)
    uniform(d.contrast, 0.0, 2.3)  # never below nothing, as in torchvision
    uniform(d.saturation, 0.8, 1.2)
    uniform(d.hue, -0.2 * math.pi, 0.2 * math.pi)
    uniform(d.angle, -math.pi / 6, math.pi / 6)
    uniform(d.sigma, 0.5, 3)
    uniform(d.noise, 0, 0.2)
    assert sorted(set(d.order.tolist())) == list(range(24))


def test_parameters_are_drawn_apart():
    d = drawn(blur=1, noise=0.1, rotate=10, shear=10, erase=1)
    columns = [d.centre_x / 1, d.height * d.width, d.flip_x, d.angle, d.shear, d.contrast, d.grey, d.sigma, d.noise]
    off = torch.corrcoef(torch.stack(columns)) - torch.eye(len(columns))
    assert float(off.abs().max()) < 0.04


def test_views_of_one_image_are_drawn_apart_and_by_their_own_policy():
    d = draw(named("byol"), N, torch.Generator().manual_seed(0))
    first, second = d[0::2], d[1::2]
    assert float((first.sigma > 0).float().mean()) == 1
    assert float((second.sigma > 0).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert float((second.solarise <= 1).float().mean()) == pytest.approx(0.2, abs=0.012)
    assert abs(float(torch.corrcoef(torch.stack([first.contrast, second.contrast]))[0, 1])) < 0.03


# As published, so that a slip of the hand is found: (crop, colour p, b c s h, blur a kind, solarise a kind)
PUBLISHED = {
    "simclr": ((0.08, 1), 0.8, (0.8, 0.8, 0.8, 0.2), (0.5,), (0,)),
    "moco-v1": ((0.2, 1), 1.0, (0.4, 0.4, 0.4, 0.4), (0,), (0,)),
    "moco-v2": ((0.2, 1), 0.8, (0.4, 0.4, 0.4, 0.1), (0.5,), (0,)),
    "moco-v3": ((0.2, 1), 0.8, (0.4, 0.4, 0.2, 0.1), (1, 0.1), (0, 0.2)),
    "simsiam": ((0.2, 1), 0.8, (0.4, 0.4, 0.4, 0.1), (0.5,), (0,)),
    "swav": ((0.14, 1), 0.8, (0.8, 0.8, 0.8, 0.2), (0.5, 0.5), (0, 0)),
    "byol": ((0.08, 1), 0.8, (0.4, 0.4, 0.2, 0.1), (1, 0.1), (0, 0.2)),
    "barlow-twins": ((0.08, 1), 0.8, (0.4, 0.4, 0.2, 0.1), (1, 0.1), (0, 0.2)),
    "dino": ((0.4, 1), 0.8, (0.4, 0.4, 0.2, 0.1), (1, 0.1, 0.5), (0, 0.2, 0)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_papers_policies_are_as_published(name):
    crop, colour, jitter, blurs, solarises = PUBLISHED[name]
    plan = named(name)
    assert (plan[0].crop_min, plan[0].crop_max) == crop
    for p in plan:
        assert (p.colour, p.grey, p.flip) == (colour, 0.2, 0.5)
        assert (p.brightness, p.contrast, p.saturation, p.hue) == jitter
        assert (p.blur_min, p.blur_max, p.crop_ratio) == (0.1, 2.0, 4 / 3)
    assert tuple(p.blur for p in plan) == blurs
    assert tuple(p.solarise for p in plan) == solarises


def test_multi_crop_has_the_papers_small_crops():
    for name, count, scale in (("swav", 6, (0.05, 0.14)), ("dino", 8, (0.05, 0.4))):
        plan = lay_out(named(name), 2, small=True)
        assert [p.side(224) for p in plan] == [224] * 2 + [96] * count
        assert {(p.crop_min, p.crop_max) for p in plan[2:]} == {scale}
        assert len(lay_out(named(name), 2)) == 2  # a method that wants none gets none
        assert lay_out(named(name), 4)[2:] == lay_out(named(name), 2)  # more large views: the kinds in turn


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_data_that_a_recipe_holds(name):
    x = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    resolved = resolve(Recipe(source="array", policy=name, batch=4, steps=1), open_source(x).train)
    assert plan_of(name, resolved.views) == POLICIES[name]
    again = recipes.from_toml(recipes.to_toml(resolved))
    assert again == resolved
    assert plan_of(name, again.views) == POLICIES[name]
    edited = recipes.to_toml(resolved).replace("flip = 0.5\n", "flip = 0.25\n")
    assert {p.flip for p in plan_of(name, recipes.from_toml(edited).views)} <= {0.0, 0.25}


def test_changes_to_every_kind_and_to_each():
    assert [p.flip for p in plan_of("dino", {"flip": 0.0})] == [0, 0, 0]
    assert [p.blur for p in plan_of("dino", [{}, {"blur": 0.7}, {}])] == [1.0, 0.7, 0.5]
    text = 'policy = "byol"\n[[views]]\nblur = 0.3\n[[views]]\nsolarise = 0.9\n'
    plan = plan_of("byol", recipes.from_toml(text).views)
    assert [(p.blur, p.solarise) for p in plan] == [(0.3, 0.0), (0.1, 0.9)]
    assert as_views(named("simclr"))["crop_min"] == 0.08


def test_three_channel_colours_are_left_out_and_asked_for_refused():
    grey = open_source(np.random.default_rng(0).integers(0, 256, (20, 16, 16, 1), dtype=np.uint8)).train
    resolved = resolve(Recipe(source="array", policy="simclr", batch=4, steps=1), grey)
    assert (resolved.views["saturation"], resolved.views["hue"], resolved.views["grey"]) == (0, 0, 0)
    assert resolve(resolved, grey) == resolved
    with pytest.raises(ValueError, match=r"views.hue = 0.1 needs 3 channels, the images have 1: leave it out"):
        resolve(Recipe(source="array", views={"hue": 0.1}, batch=4, steps=1), grey)


@pytest.mark.parametrize(("values", "message"), [
    ({"flip": 2}, r"views.flip = 2 is no probability"),
    ({"crop_min": 0.5, "crop_max": 0.2}, "give 0 < crop_min <= crop_max <= 1"),
    ({"hue": 0.7}, "views.hue = 0.7 must lie in 0 to 0.5 of the circle"),
    ({"brightness": float("nan")}, "views.brightness = nan must be a number from 0 up"),
    ({"posterise_bits": 9}, "views.posterise_bits = 9 must lie in 1 to 8 bits"),
    ({"erase_min": 0.4}, "give 0 < erase_min <= erase_max < 1"),
    ({"blur": 0.5, "blur_min": 3.0}, r"views.blur_min = 3.0 must lie in \(0, blur_max = 2.0\]"),
    ({"size": 0}, "views.size = 0 must lie in 0.01 to 4096"),
    ({"crop_ratio": 0.5}, "views.crop_ratio = 0.5 must be at least 1"),
])  # fmt: skip
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        ImagePolicy(**values)


def test_bad_names_are_named():
    with pytest.raises(ValueError, match="did you mean 'crop_min'"):
        named("simclr", crop_mni=0.1)
    with pytest.raises(ValueError, match="unknown policy 'simclr-smal'; did you mean 'simclr-small'"):
        named("simclr-smal")
    with pytest.raises(ValueError, match=r"unknown key views\[1\].filp; did you mean 'flip'"):
        recipes.from_toml("[[views]]\n[[views]]\nfilp = 1\n")
    with pytest.raises(ValueError, match=r"give a table, \[views\], or one for each kind of view, \[\[views\]\]"):
        Recipe(views=3)
