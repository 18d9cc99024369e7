"""Each part of a policy alone, to see what an encoder has been taught to ignore."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nearfar.views.policies import POLICIES
from nearfar.views.policy import ImagePolicy, Plan

_Part = tuple[Callable[[ImagePolicy], bool], tuple[str, ...], dict[str, Any]]


def _of(amplitude: str, probability: str = "", *more: str) -> _Part:
    """A part that is there where its amplitude and its probability are above 0; the latter becomes 1."""
    has = lambda p: getattr(p, amplitude) > 0 and (not probability or getattr(p, probability) > 0)  # noqa: E731
    kept = (*(() if amplitude == probability else (amplitude,)), *more)
    return has, kept, {probability: 1.0} if probability else {}


# part -> (whether a policy has it, what is taken from the policy, what is set)
_PARTS: dict[str, _Part] = {
    "crop": (lambda p: p.crop_min < 1, ("crop_min", "crop_max", "crop_ratio"), {}),
    "flip": _of("flip", "flip"),
    "vertical flip": _of("flip_vertical", "flip_vertical"),
    "rotation": _of("rotate"),
    "shear": _of("shear"),
    "shift": _of("translate"),
    "zoom": _of("zoom"),
    "perspective": _of("perspective", "perspective_p"),
    "brightness": _of("brightness", "colour"),
    "contrast": _of("contrast", "colour"),
    "saturation": _of("saturation", "colour"),
    "hue": _of("hue", "colour"),
    "grey": _of("grey", "grey"),
    "blur": _of("blur", "blur", "blur_min", "blur_max"),
    "solarise": _of("solarise", "solarise", "solarise_from"),
    "posterise": _of("posterise", "posterise", "posterise_bits"),
    "equalise": _of("equalise", "equalise"),
    "erase": _of("erase", "erase", "erase_min", "erase_max"),
    "noise": _of("noise"),
}
WHOLE = "whole policy"


def alone(plan: Plan) -> dict[str, ImagePolicy]:
    """A policy for each part of a plan: that part always, at its strength there, and nothing else; and the whole.

    Where kinds of views differ, the first that has the part gives its strength, large kinds first; the whole is the
    first large kind as it is. All views have the image's own size.

    >>> held = alone((ImagePolicy(rotate=15.0, flip=0.0, colour=0.0, grey=0.0, crop_min=1.0),))
    >>> list(held), held["rotation"].rotate
    (['rotation', 'whole policy'], 15.0)
    """
    still = POLICIES["none"][0]
    kinds = sorted(plan, key=lambda p: p.small)
    out = {}
    for name, (has, kept, fixed) in _PARTS.items():
        source = next((p for p in kinds if has(p)), None)
        if source is not None:
            kept = (*kept, "bicubic", "exact")
            out[name] = replace(still, **{key: getattr(source, key) for key in kept}, **fixed)
    return out | {WHOLE: replace(kinds[0], size=1.0, count=1)}
