import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.views import image as views
from nearfar.views.policy import POLICIES, ImagePolicy, named

X = np.random.default_rng(0).integers(0, 256, (6, 24, 20, 3), dtype=np.uint8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def still(n=6, **changes):
    """Drawn parameters that do nothing, but for what is named."""
    drawn = views.draw(named("none"), n, generator())
    return views.Drawn(**(vars(drawn) | {k: torch.as_tensor(v).expand(n).clone() for k, v in changes.items()}))


def test_none_is_the_identity():
    got = views.ImageViews(named("none"), (24, 20), 0, 255, n=1)(X, generator())[0]
    torch.testing.assert_close(got, views.plain(X, 0, 255).contiguous(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_every_policy_on_any_channels(policy, channels):
    x = np.random.default_rng(1).integers(0, 256, (5, 16, 12, channels), dtype=np.uint8)
    seen = views.ImageViews(POLICIES[policy], (8, 10), 0, 255)(x, generator())
    assert [tuple(v.shape) for v in seen] == [(5, channels, 8, 10)] * 2
    assert all(v.isfinite().all() and v.min() >= 0 and v.max() <= 1 for v in seen)


def test_same_seed_same_views_and_other_seed_others():
    make = views.ImageViews(POLICIES["simclr-small"], (24, 20), 0, 255)
    a, b, c = make(X, generator(3)), make(X, generator(3)), make(X, generator(4))
    assert all(torch.equal(p, q) for p, q in zip(a, b))
    assert not torch.equal(a[0], c[0])
    assert not torch.equal(a[0], a[1])


def test_processes_see_what_one_would():
    policy = named("simclr-small")
    whole = views.ImageViews(policy, (24, 20), 0, 255)(X, generator(5))
    halves = [views.ImageViews(policy, (24, 20), 0, 255, rank=r, world=2)(X[3 * r : 3 * r + 3], generator(5))
              for r in (0, 1)]  # fmt: skip
    for v in (0, 1):
        torch.testing.assert_close(torch.cat([halves[0][v], halves[1][v]]), whole[v], atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 24), st.integers(4, 20), st.integers(0, 99))
def test_crop_is_torchvisions_antialiased_resize(h, w, seed):
    f = pytest.importorskip("torchvision.transforms.v2.functional")
    rng = np.random.default_rng(seed)
    top, left = int(rng.integers(0, 25 - h)), int(rng.integers(0, 21 - w))
    drawn = still(centre_y=(top + h / 2) / 24, height=h / 24, centre_x=(left + w / 2) / 20, width=w / 20)
    x = views.to_lines(X, 0, 255)
    ours = views.apply(x, drawn, (12, 12))
    theirs = f.resized_crop(x.transpose(1, 2), top, left, h, w, [12, 12], antialias=True)
    # away from the crop's border ours sees the picture beyond it, theirs repeats the edge
    assert float((ours - theirs)[:, :, 3:-3, 3:-3].abs().max()) < 2e-3


def test_colour_is_torchvisions():
    f = pytest.importorskip("torchvision.transforms.v2.functional")
    x = views.to_lines(X, 0, 255) * 0.5 + 0.25  # away from the clamp
    planes = x.transpose(1, 2)
    for name, factor, theirs in [("brightness", 1.2, f.adjust_brightness), ("contrast", 0.7, f.adjust_contrast),
                                 ("saturation", 0.5, f.adjust_saturation)]:  # fmt: skip
        ours = views.apply(x, still(**{name: factor}), (24, 20))
        torch.testing.assert_close(ours, theirs(planes, factor), atol=2e-3, rtol=0, msg=name)
    grey = views.apply(x, still(grey=True), (24, 20))
    torch.testing.assert_close(grey, f.rgb_to_grayscale(planes, 3), atol=2e-3, rtol=0)


def test_flip_and_turn():
    x = views.to_lines(X[:, :20], 0, 255)
    planes = x.transpose(1, 2)
    torch.testing.assert_close(views.apply(x, still(flip_x=True), (20, 20)), planes.flip(3), atol=1e-5, rtol=0)
    turned = views.apply(x, still(angle=torch.pi / 2), (20, 20))
    torch.testing.assert_close(turned, planes.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_blur_is_a_gaussian():
    f = pytest.importorskip("torchvision.transforms.v2.functional")
    x = torch.rand(3, 3, 16, 16, generator=generator())
    want = f.gaussian_blur(x, [7, 7], [1.0, 1.0])
    torch.testing.assert_close(views.blur(x, torch.ones(3)), want, atol=1e-5, rtol=0)


def test_draws_follow_the_policy():
    drawn = views.draw(ImagePolicy(crop_min=0.2, grey=0.2, flip=0.5), 20_000, generator())
    area = drawn.height * drawn.width
    assert float(area.min()) >= 0.2 - 1e-4
    assert float(area.max()) <= 1
    assert float(drawn.grey.float().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(drawn.flip_x.float().mean()) == pytest.approx(0.5, abs=0.015)
    assert float((drawn.brightness != 1).float().mean()) == pytest.approx(0.8, abs=0.012)


def test_bad_policy_is_named():
    with pytest.raises(ValueError, match=r"views.flip = 2 is no probability"):
        ImagePolicy(flip=2)
    with pytest.raises(ValueError, match="did you mean 'crop_min'"):
        named("simclr", crop_mni=0.1)
    with pytest.raises(ValueError, match="unknown policy 'simclr-smal'; did you mean 'simclr-small'"):
        named("simclr-smal")
