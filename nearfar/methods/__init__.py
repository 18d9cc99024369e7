"""One file a method; the name ``barlow-twins`` *is* the module ``barlow_twins``.

A method's module holds ``Config`` (a frozen dataclass with the paper's defaults), ``SUPERVISED`` (does it need
labels) and ``Method``: an ``nn.Module`` built as ``Method(encoder, config, classes)``, with ``encoder``,
``views`` (how many large ones it wants), ``project(features)``, ``forward(views, batch, progress) -> Step`` and
``after_step(progress)``. ``small_views = True`` asks for the policy's small crops after the large views (multi-crop);
``wants_maps = True`` for each view as a ``views.image.View``: pixels, what was drawn, the map into the image.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from nearfar.errors import UserError, nearest

_NOT_METHODS = {"parts"}


def names() -> list[str]:
    """Every method there is a file for."""
    found = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in found if name not in _NOT_METHODS)


def module(name: str) -> ModuleType:
    """The module of a method by its name."""
    if name not in names():
        raise UserError(f"unknown method {name!r}{nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
