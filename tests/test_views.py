"""Views: geometry, blur and what follows against torchvision on the same drawn parameters, and what must not matter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nearfar import recipe as recipes
from nearfar.views import finish, geometry, mix
from nearfar.views import image as views
from nearfar.views.draw import FIELDS, draw, still
from nearfar.views.policies import POLICIES, named, plan_of
from nearfar.views.policy import ImagePolicy, lay_out
from nearfar.views.render import render

f = pytest.importorskip("torchvision.transforms.v2.functional")
from torchvision.transforms import InterpolationMode  # noqa: E402

X = np.random.default_rng(0).integers(0, 256, (6, 24, 20, 3), dtype=np.uint8)
SMOOTH = torch.nn.functional.interpolate(
    torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1)), size=(72, 72), mode="bicubic"
).clamp(0, 1)  # as pictures are: neighbours alike


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def raw(planes):
    """(B, C, H, W) in [0, 1] -> what a source gives: (B, H, W, C) float32."""
    return planes.permute(0, 2, 3, 1).contiguous()


def one(planes, size, **changes):
    return render(raw(planes), still(len(planes)).changed(**changes), size)


PLANES = torch.from_numpy(X).permute(0, 3, 1, 2) / 255


def test_none_is_the_identity():
    got = views.ImageViews(named("none"), (24, 20), 0, 255)(X, generator())[0]
    torch.testing.assert_close(got, views.plain(X, 0, 255).contiguous(), atol=1e-6, rtol=0)
    assert still(1).describe(0) == "as it is"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_every_policy_on_any_channels(policy, channels):
    x = np.random.default_rng(1).integers(0, 256, (5, 16, 12, channels), dtype=np.uint8)
    make = views.ImageViews(lay_out(named(policy), 2, small=True), (16, 12), 0, 255)
    seen = make(x, generator())
    assert [tuple(v.shape) for v in seen] == [(5, channels, *size) for size in make.sizes]
    assert all(v.isfinite().all() and v.min() >= 0 and v.max() <= 1 for v in seen)
    assert seen[0].std() > 0.05


def test_other_units_and_types_give_the_same_views():
    """uint8, floats in [0, 1], values from -3 to 5: the same pictures, the same views; what is given is left alone."""
    x = torch.from_numpy(X)
    kinds = [(x, 0, 255), (x / 255, 0, 1), (x / 255 * 8 - 3, -3, 5), (x.double() / 255, 0, 1)]
    copies = [k[0].clone() for k in kinds]
    policy = (ImagePolicy(rotate=20), ImagePolicy(), ImagePolicy(exact=True))
    seen = [views.ImageViews(policy, (24, 20), low, high)(given_, generator()) for given_, low, high in kinds]
    for other in seen[1:]:
        for a, b in zip(seen[0], other):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    assert all(torch.equal(k[0], c) for k, c in zip(kinds, copies))


def test_normalise_is_torchvisions():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain, scaled = (views.ImageViews(ImagePolicy(), (24, 20), 0, 255, normalise=n)(X, generator())
                     for n in (None, (mean, std)))  # fmt: skip
    for a, b in zip(plain, scaled):
        torch.testing.assert_close(b, f.normalize(a, mean, std), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"normalise: standard deviations \[0.2, 0.0, 0.2\] must be above 0"):
        views.ImageViews(ImagePolicy(), (24, 20), 0, 255, normalise=(mean, (0.2, 0.0, 0.2)))


# What must not matter -----------------------------------------------------------------------------------------------

EVERYTHING = ImagePolicy(
    rotate=30, shear=10, translate=0.1, zoom=0.2, perspective=0.4, blur=0.5, solarise=0.3, posterise=0.3,
    equalise=0.3, erase=0.5, noise=0.1, flip_vertical=0.3,
)  # fmt: skip


def test_same_seed_same_views_and_other_seed_others():
    make = views.ImageViews(EVERYTHING, (24, 20), 0, 255)
    a, b, c = make(X, generator(3)), make(X, generator(3)), make(X, generator(4))
    assert all(torch.equal(p, q) for p, q in zip(a, b))
    assert not torch.equal(a[0], c[0])
    assert not torch.equal(a[0], a[1])


@pytest.mark.parametrize("side", [24, 128])  # whole images, and windows of them
@pytest.mark.parametrize("policy", [EVERYTHING, ImagePolicy(blur=0.5, bicubic=True), ImagePolicy(exact=True, blur=0.5),
                                    POLICIES["swav"], POLICIES["dino"]])  # fmt: skip
def test_views_are_the_same_however_a_batch_is_split(policy, side):
    x = np.random.default_rng(2).integers(0, 256, (7, side, side, 3), dtype=np.uint8)
    plan = lay_out(policy, 2, small=True) if isinstance(policy, tuple) else (policy,) * 2
    make = views.ImageViews(plan, (side, side), 0, 255)
    whole = make(x, generator(5))
    rng = generator(5)  # goes on from part to part
    parts = [make(x[a:b], rng) for a, b in ((0, 1), (1, 4), (4, 7))]
    for v, together in enumerate(whole):
        torch.testing.assert_close(torch.cat([p[v] for p in parts]), together, atol=2e-6, rtol=0)


@pytest.mark.parametrize("policy", [EVERYTHING, ImagePolicy(blur=0.5)])
def test_views_are_the_same_in_any_mode_and_thread(policy):
    from concurrent.futures import ThreadPoolExecutor

    make = views.ImageViews(policy, (24, 20), 0, 255)
    with ThreadPoolExecutor(1) as fresh, torch.inference_mode():
        inside = fresh.submit(_in_inference_mode, make).result()  # its scratch memory is made there
        after = fresh.submit(make, X, generator(5)).result()
    plain = make(X, generator(5))
    with torch.autocast("cpu", torch.bfloat16):
        cast = make(X, generator(5))
    asked = make(torch.from_numpy(X).float().requires_grad_(), generator(5))
    for others in (inside, after, cast, asked):
        for a, b in zip(others, plain):
            torch.testing.assert_close(a.clone(), b, atol=1e-6, rtol=0)
            assert b.dtype == a.dtype
            assert not a.requires_grad
    with ThreadPoolExecutor(4) as pool:  # at once: none writes in another's memory
        at_once = list(pool.map(lambda seed: make(X, generator(seed)), [5, 6, 7, 8] * 4))
    for i, seen in enumerate(at_once):
        assert all(torch.equal(a, b) for a, b in zip(seen, at_once[i % 4]))


def _in_inference_mode(make):
    with torch.inference_mode():
        return make(X, generator(5))


def test_processes_see_what_one_would():
    whole = views.ImageViews(EVERYTHING, (24, 20), 0, 255)(X, generator(5))
    halves = [views.ImageViews(EVERYTHING, (24, 20), 0, 255, rank=r, world=2)(X[3 * r : 3 * r + 3], generator(5))
              for r in (0, 1)]  # fmt: skip
    for v in (0, 1):
        torch.testing.assert_close(torch.cat([halves[0][v], halves[1][v]]), whole[v], atol=1e-6, rtol=0)


def test_an_edit_of_one_value_moves_nothing_else():
    a, b = (draw((p,), 200, generator(1)) for p in (ImagePolicy(), ImagePolicy(blur=0.5, grey=0.5)))
    same = [n for n in FIELDS if torch.equal(getattr(a, n), getattr(b, n))]
    assert set(FIELDS) - set(same) == {"sigma", "grey"}


def test_windows_give_what_whole_images_give(monkeypatch):
    from nearfar.views import render as module

    x = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (5, 120, 130, 3), dtype=np.uint8))
    drawn = draw((named("simclr")[0],) * 2, 5, generator())
    windowed = render(x, drawn, (112, 96), high=255)
    monkeypatch.setattr(module, "_WINDOWED", 10**9)  # a limit, not a part
    torch.testing.assert_close(windowed, render(x, drawn, (112, 96), high=255), atol=2e-6, rtol=0)


def test_bfloat16_products_are_off_by_less_than_a_level():
    x = (raw(SMOOTH) * 255).to(torch.uint8)
    drawn = draw((named("simclr", solarise=0.0)[0],) * 8, 2, generator())
    exact, fast = (render(x, drawn, (64, 64), high=255, dtype=t) for t in (torch.float32, torch.bfloat16))
    assert float((exact - fast).abs().mean()) < 0.5 / 255
    assert float((exact - fast).abs().max()) > 0  # it is another arithmetic


# Geometry -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 24), st.integers(4, 20), st.integers(0, 99), st.booleans())
def test_crop_is_torchvisions_antialiased_resize(h, w, seed, cubic):
    rng = np.random.default_rng(seed)
    top, left = int(rng.integers(0, 25 - h)), int(rng.integers(0, 21 - w))
    ours = one(PLANES, (12, 12), centre_y=(top + h / 2) / 24, height=h / 24, centre_x=(left + w / 2) / 20, width=w / 20,
               bicubic=cubic)  # fmt: skip
    mode = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
    theirs = f.resized_crop(PLANES, top, left, h, w, [12, 12], mode, antialias=True).clamp(0, 1)
    # away from the crop's border: there ours sees the picture beyond it, theirs repeats the crop's edge
    inner = slice(5, -5) if cubic else slice(3, -3)
    torch.testing.assert_close(ours[:, :, inner, inner], theirs[:, :, inner, inner], atol=1e-5, rtol=0)
    if (h, w) == (24, 20):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(72, 72), (36, 50), (20, 20), (100, 90)])
@pytest.mark.parametrize("cubic", [False, True])
def test_whole_image_is_torchvisions_resize_to_the_edge(size, cubic):
    mode = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
    theirs = f.resize(SMOOTH, list(size), mode, antialias=True).clamp(0, 1)
    torch.testing.assert_close(one(SMOOTH, size, bicubic=cubic), theirs, atol=1e-5, rtol=0)


def test_flips():
    torch.testing.assert_close(one(PLANES, (24, 20), flip_x=1), PLANES.flip(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(one(PLANES, (24, 20), flip_y=1), PLANES.flip(2), atol=1e-6, rtol=0)
    turned = one(PLANES, (24, 20), flip_x=1, angle=1e-9)  # by the gather
    torch.testing.assert_close(turned, PLANES.flip(3), atol=1e-5, rtol=0)


def test_a_quarter_turn_is_exact():
    torch.testing.assert_close(one(PLANES[:, :, :20], (20, 20), angle=math.pi / 2), PLANES[:, :, :20].rot90(1, (2, 3)),
                               atol=1e-4, rtol=0)  # fmt: skip


def middle(a, b, cut=14):
    """Mean and largest absolute difference away from the border, where the two fill differently."""
    d = (a - b)[:, :, cut:-cut, cut:-cut].abs()
    return float(d.mean()), float(d.max())


@pytest.mark.parametrize("degrees", [-30.0, 7.0, 90.0, 135.0])
def test_rotation_is_torchvisions(degrees):
    ours = one(SMOOTH, (72, 72), angle=math.radians(degrees))
    assert middle(ours, f.rotate(SMOOTH, degrees, InterpolationMode.BILINEAR), 20)[1] < 1e-4


@pytest.mark.parametrize(("shear", "shift", "zoom"), [(15, 0, 1.0), (-10, 0.1, 1.0), (0, 0.1, 1.2), (12, -0.1, 1.3)])
def test_affine_is_torchvisions(shear, shift, zoom):
    theirs = f.affine(SMOOTH, 0.0, [shift * 72, 0.0], zoom, [shear, 0.0], InterpolationMode.BILINEAR)
    ours = one(SMOOTH, (72, 72), shear=math.tan(math.radians(shear)), centre_x=0.5 - shift / zoom, height=1 / zoom,
               width=1 / zoom)  # fmt: skip
    assert middle(ours, theirs)[1] < 1e-4


def test_perspective_is_torchvisions():
    inward = np.random.default_rng(4).uniform(0, 0.2, (4, 2))  # corners: y, x; top left, top right, bottom right, left
    names = [n for n in FIELDS if n[0] in "yx" and n[1:].isdigit()]
    ours = one(SMOOTH, (72, 72), **dict(zip(names, inward.ravel())))
    sign = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    start = np.array([[0, 0], [0, 72], [72, 72], [72, 0]])
    end = start + sign * inward * 36
    theirs = f.perspective(SMOOTH, None, None, InterpolationMode.BILINEAR, coefficients=_coefficients(start, end))
    assert middle(ours, theirs, 20)[1] < 2e-3


def _coefficients(start, end):
    """Eight numbers that take output pixels to input pixels, by least squares from the corners (y, x)."""
    rows, right = [], []
    for (sy, sx), (ey, ex) in zip(start, end):
        rows += [[ex, ey, 1, 0, 0, 0, -sx * ex, -sx * ey], [0, 0, 0, ex, ey, 1, -sy * ex, -sy * ey]]
        right += [sx, sy]
    return np.linalg.solve(np.array(rows, float), np.array(right, float)).tolist()


def test_a_turned_view_is_antialiased():
    """A fine chessboard turned and shrunk four times is grey; sampled without a filter it would be noise."""
    board = ((torch.arange(128)[:, None] + torch.arange(128)) % 2).float().expand(1, 1, -1, -1)
    got = one(board, (32, 32), angle=math.radians(20))[:, :, 8:-8, 8:-8]
    assert float((got - 0.5).abs().max()) < 0.02
    one_to_one = one(board, (128, 128), angle=math.radians(20))
    assert float(one_to_one.std()) > 0.15


def test_a_turned_and_shrunk_view_is_near_torchvisions_rotate_then_resize():
    """Of the same picture four times as fine: within a few levels, as the two blur differently."""
    fine = torch.nn.functional.interpolate(SMOOTH, scale_factor=4, mode="bicubic").clamp(0, 1)
    theirs = f.resize(f.rotate(fine, 25.0, InterpolationMode.BILINEAR), [72, 72], antialias=True)
    mean, largest = middle(one(fine, (72, 72), angle=math.radians(25)), theirs, 20)
    assert mean < 1 / 255
    assert largest < 4 / 255


# Blur and what follows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.2, 1.0, 2.0])
def test_blur_is_torchvisions(sigma):
    want = f.gaussian_blur(SMOOTH, [23, 23], [sigma, sigma])
    torch.testing.assert_close(finish.blur(SMOOTH, torch.full((2,), sigma)), want, atol=2e-4, rtol=0)
    torch.testing.assert_close(one(SMOOTH, (72, 72), sigma=sigma), want, atol=2e-4, rtol=0)  # in the matrices
    torch.testing.assert_close(one(SMOOTH, (72, 72), sigma=sigma, exact=1), want, atol=2e-4, rtol=0)
    nearly = one(SMOOTH, (72, 72), sigma=sigma, angle=1e-9)  # after the gather
    torch.testing.assert_close(nearly, want, atol=3e-4, rtol=0)


BYTES = (SMOOTH * 255).round().to(torch.uint8)


def test_pointwise_operations_are_torchvisions_on_bytes():
    x = BYTES.float() / 255
    torch.testing.assert_close(one(x, (72, 72), solarise=0.5), f.solarize(x, 0.5), atol=1e-6, rtol=0)
    for bits in (1, 4, 7):
        want = f.posterize(BYTES, bits).float() / 255
        torch.testing.assert_close(one(x, (72, 72), bits=bits), want, atol=1e-5, rtol=0)
    torch.testing.assert_close(one(x, (72, 72), equalise=1), f.equalize(BYTES).float() / 255, atol=1e-5, rtol=0)


def test_equalise_leaves_a_flat_picture():
    x = torch.full((2, 3, 8, 8), 0.4)
    want = f.equalize((x * 255).round().byte()) / 255
    torch.testing.assert_close(one(x, (8, 8), equalise=1), want, atol=1e-6, rtol=0)


def test_erase_is_torchvisions_with_the_mean():
    box = {"top": 6 / 24, "left": 5 / 20, "bottom": 18 / 24, "right": 9 / 20}
    want = f.erase(PLANES, 6, 5, 12, 4, PLANES.mean((2, 3), keepdim=True))
    torch.testing.assert_close(one(PLANES, (24, 20), **box), want, atol=1e-6, rtol=0)


def test_noise_is_standard_normal_and_the_pixels_own():
    noise = finish.gaussian_noise(torch.tensor([3.0, 4.0]), (3, 100, 100))
    values = noise.flatten(1)
    assert float(values.mean().abs()) < 0.01
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    assert float((values.abs() > 1.96).float().mean()) == pytest.approx(0.05, abs=0.004)
    assert abs(float(torch.corrcoef(values)[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([values[0, :-1], values[0, 1:]]))[0, 1])) < 0.02
    grey = torch.full((2, 3, 40, 40), 0.5)
    seen = one(grey, (40, 40), noise=0.1, seed=torch.tensor([3.0, 4.0]))
    assert float(seen.std()) == pytest.approx(0.1, abs=0.005)
    torch.testing.assert_close(seen[0], 0.5 + 0.1 * finish.gaussian_noise(torch.tensor([3.0]), (3, 40, 40))[0])


# The map ------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_points_boxes_and_masks_follow_the_picture(seed, turned):
    """A bright square in the picture is where the map says it is in the view, and so are its box and its mask."""
    rng = np.random.default_rng(seed)
    y0, x0, side = *rng.integers(16, 40, 2), int(rng.integers(10, 20))
    x = np.zeros((1, 64, 72, 1), np.uint8)
    x[0, y0 : y0 + side, x0 : x0 + side] = 255
    policy = ImagePolicy(crop_min=0.5, colour=0, flip_vertical=0.5, translate=0.05, zoom=0.1,
                         **(dict(rotate=40, shear=10, perspective=0.2) if turned else {}))  # fmt: skip
    seen = views.ImageViews(policy, (80, 64), 0, 255, n=1).seen(x, generator(seed))[0]
    size = tuple(seen.pixels.shape[2:])
    box = torch.tensor([[[x0, y0, x0 + side, y0 + side]]], dtype=torch.float32)
    cut, share = geometry.follow_boxes(box, seen.to_image, size)
    assert 0 <= float(share) <= 1 + 1e-5
    mask = geometry.follow_mask(torch.from_numpy(x[..., 0] > 0).long(), seen.to_image, size)[0]
    inside = seen.pixels[0, 0]
    # a pixel's value is the mask's but on the border of the square, which the picture blurs
    assert float((inside[mask == 1] > 0.5).float().mean() if (mask == 1).any() else 1.0) > 0.9
    if float(share) > 0.999:
        on = (inside > 0.5).nonzero().float()
        low, high = on.amin(0), on.amax(0) + 1  # y, x
        want = torch.tensor([low[1], low[0], high[1], high[0]])
        torch.testing.assert_close(cut[0, 0], want, atol=2.5, rtol=0)


def test_places_of_two_views_agree_on_the_same_pixels():
    """What two views show at cells whose places are near is alike: the colours there are."""
    ramp = torch.stack(torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij"), 2)
    x = (torch.cat([ramp, ramp[..., :1] * 0], 2) * 255).byte().numpy()[None]
    policy = ImagePolicy(crop_min=0.4, colour=0, grey=0, rotate=30)
    a, b = views.ImageViews(policy, (64, 64), 0, 255).seen(x, generator(2))
    pa, pb = (geometry.places(v.to_image, (64, 64), (8, 8))[0].view(64, 2) for v in (a, b))
    ca, cb = (torch.nn.functional.avg_pool2d(v.pixels, 8)[0].flatten(1).T for v in (a, b))
    near = torch.cdist(pa, pb) < 2
    inside = ((pa > 3) & (pa < 61)).all(1)[:, None] & ((pb > 3) & (pb < 61)).all(1)
    i, j = (near & inside).nonzero(as_tuple=True)
    assert len(i) > 3
    assert float((ca[i] - cb[j]).abs().max()) < 0.06


def test_bad_input_is_named():
    make = views.ImageViews(ImagePolicy(), (8, 8), 0, 255)
    with pytest.raises(ValueError, match=r"views of an array of shape \(8, 8, 3\): give images as \(B, H, W, C\)"):
        make(np.zeros((8, 8, 3), np.uint8), generator())
    with pytest.raises(ValueError, match="no views: give at least one policy"):
        views.ImageViews((), (8, 8), 0, 255)


# Mixing ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [mix.mixup, mix.cutmix])
def test_mixing_says_what_it_did(how):
    x = torch.rand(64, 3, 20, 24, generator=generator())
    mixed, partner, share = how(x, generator(1), alpha=1.0)
    assert sorted(partner.tolist()) == list(range(64))
    assert all(torch.equal(a, b) for a, b in zip(how(x, generator(1)), (mixed, partner, share)))
    by = share[:, None, None, None]
    if how is mix.mixup:
        torch.testing.assert_close(mixed, by * x + (1 - by) * x[partner])
    own, other = mixed == x, mixed == x[partner]
    if how is mix.cutmix:
        assert bool((own | other).all())  # each pixel is whole
        moved = partner != torch.arange(64)
        torch.testing.assert_close(own[moved].float().mean((1, 2, 3)), share[moved], atol=1e-5, rtol=0)
    assert 0.1 < float(share.std()) < 0.4


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixing_draws_beta(alpha):
    x = torch.zeros(4000, 1, 1, 1)
    share = mix.mixup(x, generator(), alpha)[2]
    assert stats.kstest(share.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    with pytest.raises(ValueError, match="alpha = 0 must be above 0"):
        mix.mixup(x, generator(), 0)


# The sheet ------------------------------------------------------------------------------------------------------------


def test_the_sheet_is_a_picture_of_what_was_drawn(tmp_path, capsys):
    from PIL import Image

    from nearfar.cli import main

    out = tmp_path / "sheet.png"
    assert main(["views", "digits", "--policy", "dino-small", "--rows", "3", "--large", "2", "-o", str(out)]) == 0
    with Image.open(out) as sheet:
        assert sheet.width == 7 * (160 + 12) + 12  # the original, two large views and four small ones
        pixels = np.asarray(sheet.convert("L"))
    assert pixels[34 : 34 + 160, 12 : 12 + 160].std() > 20  # the first original
    small = 12 + 3 * 172
    assert pixels[34 : 34 + 80, small : small + 80].std() > 0
    said = capsys.readouterr().out
    assert said.count("[[views]]") == 3
    plan = plan_of("dino-small", recipes.from_toml(said.rpartition("\n\n")[0]).views)
    assert [p.hue for p in plan] == [0, 0, 0]  # digits are grey: what is printed is what is done
    before = out.read_bytes()
    assert main(["views", "digits", "--policy", "dino-small", "--rows", "3", "--large", "2", "-o", str(out)]) == 0
    assert out.read_bytes() == before
    assert not [p for p in tmp_path.iterdir() if p != out]


@pytest.mark.parametrize(("argv", "message"), [
    (["--policy", "simclrr"], "unknown policy 'simclrr'; did you mean 'simclr'"),
    (["--views.grey", "1"], "views.grey = 1.0 needs 3 channels, the images have 1: leave it out"),
    (["-o", "sheet.txt"], "-o sheet.txt: give a .png, .jpg or .webp file"),
    (["--rows", "0"], "--rows 0, --large 4: give 1 or more"),
])  # fmt: skip
def test_a_wrong_sheet_is_one_line(argv, message, capsys, tmp_path, monkeypatch):
    from nearfar.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["views", "digits", *argv]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
