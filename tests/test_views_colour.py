"""Colour: the three matrices, the law that the operations commute, and the exact form against torchvision."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.views.colour import colour_map, luma_weights
from nearfar.views.draw import draw, still
from nearfar.views.policies import named
from nearfar.views.policy import ImagePolicy
from nearfar.views.render import render

f = pytest.importorskip("torchvision.transforms.v2.functional")

PLANES = torch.rand(6, 3, 24, 20, generator=torch.Generator().manual_seed(0))
INNER = PLANES * 0.4 + 0.3  # away from the clamp
ADJUST = (f.adjust_brightness, f.adjust_contrast, f.adjust_saturation,
          lambda x, turn: f.adjust_hue(x, turn / (2 * np.pi)))  # fmt: skip
NAMES = ("brightness", "contrast", "saturation", "hue")


def one(planes, **changes):
    raw = planes.permute(0, 2, 3, 1).contiguous()
    return render(raw, still(len(planes)).changed(**changes), tuple(planes.shape[2:]))


@pytest.mark.parametrize(("name", "factor"), [("brightness", 1.3), ("contrast", 0.6), ("saturation", 0.4),
                                              ("saturation", 1.5)])  # fmt: skip
@pytest.mark.parametrize("exact", [0, 1])
def test_factors_are_torchvisions(name, factor, exact):
    want = ADJUST[NAMES.index(name)](INNER, factor)
    # the affine form's luma weights sum to one, torchvision's to 0.9999
    torch.testing.assert_close(one(INNER, exact=exact, **{name: factor}), want, atol=1e-6 if exact else 2e-4, rtol=0)


@pytest.mark.parametrize("exact", [0, 1])
def test_grey_is_torchvisions(exact):
    want = f.rgb_to_grayscale(PLANES, 3)
    torch.testing.assert_close(one(PLANES, grey=1, exact=exact), want, atol=1e-6 if exact else 2e-4, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 23), *[st.floats(0, 2)] * 3, st.floats(-np.pi, np.pi))
def test_the_exact_form_is_torchvisions_in_any_order(order, b, c, s, h):
    want = PLANES
    values = (b, c, s, h)
    for k in list(permutations(range(4)))[order]:
        want = ADJUST[k](want, values[k])
    got = one(PLANES, exact=1, order=order, **dict(zip(NAMES, values)))
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


LUMA = torch.tensor([0.2989, 0.587, 0.114], dtype=torch.double)
LUMA = LUMA / LUMA.sum()


def naive(x, name, value):
    """One operation in float64, not clamped. x (3, h·w)"""
    y = LUMA @ x
    if name == "brightness":
        return x * value
    if name == "contrast":
        return x * value + (1 - value) * y.mean()
    if name == "saturation":
        return x * value + (1 - value) * y
    r, g, b = x  # hue: two coordinates that are 0 on greys are turned, a weighted mean is kept
    along, across = r - (g + b) / 2, (g - b) * np.sqrt(3) / 2
    along, across = along * np.cos(value) - across * np.sin(value), along * np.sin(value) + across * np.cos(value)
    side = 0.75**0.5
    rows = torch.tensor([[0.45, 0.1, 0.45], [1, -0.5, -0.5], [0, side, -side]]).double()
    return torch.linalg.solve(rows, torch.stack([rows[0] @ x, along, across]))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 1.8), st.floats(0.2, 1.8), st.floats(0.2, 1.8), st.floats(-1.2, 1.2), st.booleans())
def test_the_operations_commute_and_the_map_is_their_product(b, c, s, h, grey):
    """Brightness, contrast and saturation in each order give the same colours; with hue and grey after, the map."""
    x = PLANES[0].flatten(1).double()  # (3, h·w)
    ends = []
    for order in permutations(zip(NAMES[:3], (b, c, s))):
        y = x
        for name, value in order:
            y = naive(y, name, value)
        ends.append(y)
    for other in ends[1:]:
        torch.testing.assert_close(other, ends[0], atol=1e-12, rtol=0)
    want = naive(ends[0], "hue", h)
    want = (LUMA @ want).expand(3, -1) if grey else want
    m, k = colour_map(still(1).changed(brightness=b, contrast=c, saturation=s, hue=h, grey=grey), 3)
    shift = k[0].double() * (luma_weights(3).double() @ x).mean()
    torch.testing.assert_close(m[0].double() @ x + shift, want, atol=1e-5, rtol=0)


def test_hue_turns_the_way_torchvisions_does():
    """Other numbers (HSV's turn is no matrix), but nearer than no turn, and far from the other way."""
    for turn in (-0.1, 0.05, 0.1):
        want = f.adjust_hue(INNER, turn)
        near, none, other = ((one(INNER, hue=sign * turn * 2 * np.pi) - want).abs().mean() for sign in (1, 0, -1))
        assert near < 0.95 * none
        assert other > 1.5 * none


def test_fused_is_near_exact_on_pictures(data):
    """SimCLR's colours at strength 0.5 on CIFAR-10: what clamping once and HSV's other hue change, in levels of 255."""
    from PIL import Image

    with Image.open(data / "cifar10" / "test.webp") as sheet:
        tiles = np.asarray(sheet.convert("RGB"))[: 32 * 4]
    x = torch.from_numpy(tiles.reshape(4, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3).copy())
    difference = {}
    for hue in (0.0, 0.1):
        drawn = draw(named("simclr-small", hue=hue), len(x), torch.Generator().manual_seed(0))
        a, b = (render(x, drawn.changed(exact=e), (32, 32), high=255) for e in (0, 1))
        difference[hue] = float((a - b).abs().mean()) * 255
    assert difference[0.0] < 1.5
    assert difference[0.1] < 3


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_have_brightness_and_contrast_about_their_mean(channels):
    x = PLANES.repeat(1, 2, 1, 1)[:, :channels] * 0.4 + 0.3
    want = 1.2 * (0.7 * x + 0.3 * x.mean((1, 2, 3), keepdim=True))
    for exact in (0, 1):
        got = one(x, brightness=1.2, contrast=0.7, saturation=0.1, hue=1.0, grey=1, exact=exact)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_one_picture_among_others_is_as_it_is_alone():
    """The mean that contrast turns about is its own, whoever is beside it."""
    drawn = draw((ImagePolicy(brightness=0.8, contrast=0.8),), 6, torch.Generator().manual_seed(1))
    raw = PLANES.permute(0, 2, 3, 1).contiguous()
    whole = render(raw, drawn, (24, 20))
    for i in range(6):
        torch.testing.assert_close(render(raw[i : i + 1], drawn[i : i + 1], (24, 20)), whole[i : i + 1],
                                   atol=1e-6, rtol=0)  # fmt: skip
