"""The named policies, with their papers' parameters: one kind of view, two that differ, or small crops too.

The values are those of the published code (named beside each). What the table leaves out: crops are fractional, not
rounded to pixels; colour operations commute here (views/colour.py), so their order is no parameter; brightness is
multiplicative (BYOL's code and SimCLR's first release add); a blur's kernel is cut at 4 sigma and its border reflected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from nearfar.errors import UserError, nearest
from nearfar.views.policy import ImagePolicy, Plan, Views

_STILL = ImagePolicy(crop_min=1.0, crop_ratio=1.0, flip=0.0, colour=0.0, brightness=0.0, contrast=0.0, saturation=0.0,
                     hue=0.0, grey=0.0)  # fmt: skip

# Strength 1 (Chen 2020, appendix A; google-research/simclr, data_util.py).
_SIMCLR = ImagePolicy(crop_min=0.08, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)
# BYOL's two views (Grill 2020, appendix B; deepmind-research/byol, utils/augmentations.py).
_BYOL = ImagePolicy(crop_min=0.08, saturation=0.2, blur=1.0, bicubic=True)
_BYOL_2 = replace(_BYOL, blur=0.1, solarise=0.2)
_SMALL = ImagePolicy(crop_min=0.2)
_BYOL_SMALL = replace(_BYOL, blur=0.0)
# LeJEPA's (Balestriero 2025; its README).
_LEJEPA = ImagePolicy(crop_min=0.3, saturation=0.2, blur=0.5, solarise=0.2)

POLICIES: dict[str, Plan] = {
    # SimCLR v1 and v2.
    "simclr": (replace(_SIMCLR, bicubic=True),),
    # SupCon's on CIFAR (HobbitLong/SupContrast); SimCLR's there (appendix B.9, strength 0.5) crop from 0.08 on.
    "simclr-small": (_SMALL,),
    # He 2020 (facebookresearch/moco, main_moco.py): colour always, hue as strong as the rest, no blur.
    "moco-v1": (ImagePolicy(crop_min=0.2, colour=1.0, hue=0.4),),
    # Chen 2020b (the same file, --aug-plus).
    "moco-v2": (ImagePolicy(crop_min=0.2, blur=0.5),),
    # Chen 2021 (facebookresearch/moco-v3, main_moco.py): BYOL's two views, larger crops, bilinear.
    "moco-v3": (replace(_BYOL, crop_min=0.2, bicubic=False), replace(_BYOL_2, crop_min=0.2, bicubic=False)),
    # Chen 2021b (facebookresearch/simsiam, main_simsiam.py): MoCo v2's values.
    "simsiam": (ImagePolicy(crop_min=0.2, blur=0.5),),
    # Caron 2020 (facebookresearch/swav, src/multicropdataset.py): 2 × 224 and 6 × 96.
    "swav": (replace(_SIMCLR, crop_min=0.14), replace(_SIMCLR, crop_min=0.05, crop_max=0.14, count=6, size=96 / 224)),
    # For pictures of 32 pixels, ours: small crops of half the side that keep more of the picture.
    "swav-small": (replace(_SMALL, crop_min=0.3), replace(_SMALL, crop_min=0.1, crop_max=0.3, count=4, size=0.5)),
    "byol": (_BYOL, _BYOL_2),
    # Zbontar 2021 (facebookresearch/barlowtwins, main.py) and Bardes 2022 (facebookresearch/vicreg): BYOL's values.
    "barlow-twins": (_BYOL, _BYOL_2),
    "vicreg": (_BYOL, _BYOL_2),
    # BYOL, Barlow Twins and MoCo v3 on CIFAR, as solo-learn has them (augmentations/asymmetric.yaml): no blur.
    "byol-small": (_BYOL_SMALL, replace(_BYOL_SMALL, solarise=0.2)),
    # Caron 2021 (facebookresearch/dino, main_dino.py): 2 global views that differ, 8 × 96.
    "dino": (replace(_BYOL, crop_min=0.4), replace(_BYOL_2, crop_min=0.4),
             replace(_BYOL, crop_min=0.05, crop_max=0.4, blur=0.5, count=8, size=96 / 224)),
    # For pictures of 32 pixels: lightly's two global views on CIFAR-10, and four crops of half the side, ours.
    "dino-small": (replace(_BYOL_SMALL, crop_min=0.4), replace(_BYOL_SMALL, crop_min=0.4, solarise=0.2),
                   replace(_BYOL_SMALL, crop_min=0.1, crop_max=0.4, count=4, size=0.5)),
    "lejepa": (_LEJEPA, replace(_LEJEPA, crop_min=0.05, crop_max=0.3, count=6, size=98 / 224)),
    # Things photographed from the front in grey (clothes, products): flips, crops, brightness and contrast.
    "objects-grey": (ImagePolicy(crop_min=0.5, brightness=0.5, contrast=0.5, saturation=0.0, hue=0.0, grey=0.0),),
    # Writing: never mirrored; slant, small turns, crops that keep most of the sign, strokes lighter and darker.
    "digits": (ImagePolicy(crop_min=0.5, crop_ratio=1.3, flip=0.0, rotate=15.0, shear=15.0, saturation=0.0, hue=0.0,
                           grey=0.0),),
    # Pages: never mirrored; held a little askew, lit and focused differently.
    "documents": (ImagePolicy(crop_min=0.4, flip=0.0, rotate=5.0, perspective=0.2, saturation=0.2, hue=0.05, blur=0.3,
                              blur_max=1.5),),
    # Seen from above: no up or down, any angle.
    "aerial": (ImagePolicy(crop_min=0.3, flip_vertical=0.5, rotate=180.0, grey=0.0, saturation=0.2, hue=0.05),),
    # Under a microscope or a scanner: any angle, stain and exposure vary, the structure's size matters.
    "medical": (ImagePolicy(crop_min=0.4, crop_ratio=1.1, flip_vertical=0.5, rotate=180.0, grey=0.0, brightness=0.3,
                            contrast=0.3, saturation=0.3, hue=0.04, blur=0.2, blur_max=1.0),),
    "none": (_STILL,),
}  # fmt: skip

# What else suits a policy's images: settings of a method (where it has them) that were not given.
SUITS: dict[str, dict[str, float]] = {
    # few kinds, much alike: half of a batch's "negatives" are of an anchor's own kind, and a sharp softmax
    # would push them apart hardest (docs/results.md has the figures)
    "digits": {"temperature": 0.5},
    # the same, more mildly: 0.5 is better at few labels, 0.2 at kNN and linear, 0.3 between them in each
    "objects-grey": {"temperature": 0.3},
}


def named(name: str, **changes: Any) -> Plan:
    """A policy by name, with single values changed in every kind of view.

    >>> named("simclr-small", crop_min=0.3)[0].crop_min
    0.3
    """
    if name not in POLICIES:
        raise UserError(f"unknown policy {name!r}{nearest(name, POLICIES)}")
    known = [field.name for field in fields(ImagePolicy)]
    for key in changes:
        if key not in known:
            raise UserError(f"unknown key views.{key}{nearest(key, known)}")
    return tuple(replace(p, **changes) for p in POLICIES[name])


def plan_of(name: str, views: Views) -> Plan:
    """The plan of a recipe: a policy's name, and changes to every kind of view or, in a list, to each.

    >>> len(plan_of("dino", {"flip": 0.0})), len(plan_of("simclr", [{}, {"solarise": 0.2}]))
    (3, 2)
    """
    base = named(name)
    if isinstance(views, Mapping):
        return tuple(replace(p, **views) for p in base)
    return tuple(replace(base[min(i, len(base) - 1)], **v) for i, v in enumerate(views))


def choose(shape: tuple[int, int, int], hint: str | None, own: tuple[str, str] | None = None) -> str:
    """The policy that ``auto`` stands for, from the image's (H, W, C) and what the source says of itself.

    ``own`` are a method's own two for photographs, large and small.
    """
    if hint:
        return hint
    height, width, channels = shape
    if channels != 3:
        return "objects-grey" if max(height, width) >= 16 else "digits"
    return (own or ("simclr", "simclr-small"))[max(height, width) < 65]
