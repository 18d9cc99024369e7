"""One file a method; the name ``barlow-twins`` *is* the module ``barlow_twins``.

A method's module holds

- ``Config``: a frozen dataclass with the paper's defaults;
- ``SUPERVISED``: does it need labels;
- ``PRESETS``: ``small``, a recipe for small machines and images, ``paper``, the published one, and what else the
  paper has, each as changes to a :class:`nearfar.recipe.Recipe` (``optim`` as changes to an ``Optim``);
- ``POLICY``, where it wants views of its own kind: the policies for large and for small photographs;
- ``Method``: an ``nn.Module`` built as ``Method(encoder, config, classes, images)``, with ``encoder``, ``views`` (how
  many large ones it wants), ``project(features)``, ``forward(views, index, labels, progress) -> Step`` and
  ``after_step(progress)``, where twin, queue, centre and prototypes move.

A ``Method`` may also say ``small_views = True``: the policy's small crops after the large views (multi-crop);
``wants_maps = True``: each view as a ``views.image.View``: pixels, what was drawn, the map into the image;
``per_class = K``: batches of P classes with K images each; ``rates``: parameters that learn at another rate;
``before_step(progress)``: called between backward and the optimiser's step (a head that is held still at first);
``batch_norm = "own"``: each process's BatchNorm keeps its own statistics, as the method shuffles its rows; else they
are those of the whole batch.
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
