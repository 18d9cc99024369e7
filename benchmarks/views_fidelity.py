"""How far is each operation from torchvision v2's on the same drawn parameters? In levels of 255, on real pictures.

    python benchmarks/views_fidelity.py "$NEARFAR_DATA"

1,000 CIFAR-10 test pictures at 32×32 and 40 microscope photographs at 224×224, the float32 tensors of both. Then whole
policies: the fused form against the exact one (operations in a drawn order, clamped after each, HSV's hue, blur last),
what a drawn order changes in the exact form against a fixed one, and bfloat16 products against float32.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as f
from PIL import Image
from torchvision.transforms import InterpolationMode

from nearfar.views.draw import draw, still
from nearfar.views.policies import named
from nearfar.views.render import render

LINEAR, CUBIC = InterpolationMode.BILINEAR, InterpolationMode.BICUBIC


def pictures(data: Path) -> dict[int, torch.Tensor]:
    """(N, H, W, 3) uint8 at 32 and 224 pixels."""
    sheet = np.asarray(Image.open(data / "cifar10" / "test.webp").convert("RGB"))[: 32 * 10]
    small = sheet.reshape(10, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
    files = sorted((data / "detection" / "bccd" / "JPEGImages").glob("*.jpg"))[:40]
    large = [np.asarray(Image.open(p).convert("RGB").crop((80, 0, 560, 480)).resize((224, 224))) for p in files]
    return {32: torch.from_numpy(small.copy()), 224: torch.from_numpy(np.stack(large))}


def operations(side: int):
    """Name, our parameters, torchvision's function on (N, 3, H, W) floats, pixels of the border that are left out."""
    a, b = side // 8, side // 2  # a crop: top and left, height and width
    crop = {"centre_y": (a + b / 2) / side, "centre_x": (a + b / 2) / side, "height": b / side, "width": b / side}
    turn = math.radians(20)
    yield "crop, bilinear", crop, lambda x: f.resized_crop(x, a, a, b, b, [side] * 2, LINEAR, antialias=True), 0
    yield "the same, without a border of 1/16", crop, lambda x: f.resized_crop(
        x, a, a, b, b, [side] * 2, LINEAR, antialias=True), side // 16
    yield "crop, bicubic", crop | {"bicubic": 1}, lambda x: f.resized_crop(
        x, a, a, b, b, [side] * 2, CUBIC, antialias=True).clamp(0, 1), 0
    yield "flip", {"flip_x": 1}, f.horizontal_flip, 0
    yield "rotation by 20°, middle half", {"angle": turn}, lambda x: f.rotate(x, 20.0, LINEAR), side // 4
    yield "shear by 20°, middle half", {"shear": math.tan(turn)}, lambda x: f.affine(
        x, 0.0, [0.0, 0.0], 1.0, [20.0, 0.0], LINEAR), side // 4
    yield "brightness ×1.4", {"brightness": 1.4}, lambda x: f.adjust_brightness(x, 1.4), 0
    yield "contrast ×1.4", {"contrast": 1.4}, lambda x: f.adjust_contrast(x, 1.4), 0
    yield "saturation ×1.4", {"saturation": 1.4}, lambda x: f.adjust_saturation(x, 1.4), 0
    for degrees in (18, 36, 72):
        by = degrees / 360
        yield f"hue by {degrees}°", {"hue": 2 * math.pi * by}, lambda x, by=by: f.adjust_hue(x, by), 0
        exact = {"hue": 2 * math.pi * by, "exact": 1}
        yield f"hue by {degrees}°, exact", exact, lambda x, by=by: f.adjust_hue(x, by), 0
        yield f"hue by {degrees}°, against none", {}, lambda x, by=by: f.adjust_hue(x, by), 0
    yield "grey", {"grey": 1}, lambda x: f.rgb_to_grayscale(x, 3), 0
    yield "blur σ 1", {"sigma": 1.0}, lambda x: f.gaussian_blur(x, [23, 23], [1.0, 1.0]), 0
    yield "solarise", {"solarise": 0.5}, lambda x: f.solarize(x, 0.5), 0
    yield "posterise, 4 bits", {"bits": 4}, lambda x: f.posterize((x * 255).round().byte(), 4).float() / 255, 0
    yield "equalise", {"equalise": 1}, lambda x: f.equalize((x * 255).round().byte()).float() / 255, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    sets = pictures(parser.parse_args().data)
    rows: dict[str, dict[int, tuple[float, float]]] = {}
    for side, x in sets.items():
        planes = x.permute(0, 3, 1, 2).float() / 255
        for name, changes, theirs, border in operations(side):
            ours = render(x, still(len(x)).changed(**changes), (side, side), high=255)
            d = (ours - theirs(planes)).abs()[:, :, border : side - border, border : side - border] * 255
            rows.setdefault(name, {})[side] = (float(d.mean()), float(d.max()))
    print("| operation | 32×32, mean | largest | 224×224, mean | largest |\n|---|---:|---:|---:|---:|")
    for name, got in rows.items():
        print(f"| {name} | " + " | ".join(f"{mean:.3f} | {most:.2f}" for mean, most in got.values()) + " |")
    print("\n| policy | pictures | fused, exact | without hue | order drawn, fixed (exact) | bfloat16, float32 |")
    print("|---|---|---:|---:|---:|---:|")
    for name, side in (("simclr-small", 32), ("moco-v1", 32), ("simclr", 224), ("moco-v2", 224), ("byol", 224)):
        x = sets[side]
        drawn = draw(named(name), len(x), torch.Generator().manual_seed(0))
        make = lambda d, x=x, side=side, **more: render(x, d, (side, side), high=255, **more)  # noqa: E731
        apart = lambda a, b: f"{float((a - b).abs().mean()) * 255:.2f}"  # noqa: E731
        exact, fused = make(drawn.changed(exact=1)), make(drawn)
        flat = drawn.changed(hue=0)
        said = (apart(fused, exact), apart(make(flat), make(flat.changed(exact=1))),
                apart(exact, make(drawn.changed(exact=1, order=0))),
                apart(fused, make(drawn, dtype=torch.bfloat16)))  # fmt: skip
        print(f"| {name} | {side}×{side} | {' | '.join(said)} |")


if __name__ == "__main__":
    main()
