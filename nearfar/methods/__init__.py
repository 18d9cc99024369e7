"""One file a method; the name ``barlow-twins`` *is* the module ``barlow_twins``.

A method's module holds

- ``Config``: a frozen dataclass with the paper's defaults;
- ``SUPERVISED``: does it need labels;
- ``PRESETS``: ``small``, a recipe for small machines and images, ``paper``, the published one, and what else the
  paper has, each as changes to a :class:`nearfar.recipe.Recipe` (``optim`` as changes to an ``Optim``);
- ``POLICY``, where it wants views of its own kind: the policies for large and for small photographs;
- ``CONTENT``, ``"image"`` or ``"text"`` where it learns from these alone; left out: from both;
- ``NEEDS``, data that it cannot do without: ``"pairs"``, ``"scores"`` (pairs with a score each, in place of labels) or
  ``"neighbours"`` (texts with the one that follows them, as two views); left out: single items will do;
- ``PAIRS = True``, where a method that learns from labels also learns from given pairs, without any;
- ``SCORES = True``, where it can also learn from pairs with a score each;
- ``NEGATIVES = True``, where the third text of a row is understood as the anchor's negative;
- ``CONTEXT = True``, where an encoder that sees no order (bag) would not do;
- ``CAUSAL = True``, where its encoder's token vectors must not see what follows them;
- ``Method``: an ``nn.Module`` built as ``Method(encoder, config, classes, images)``, with ``encoder``, ``views`` (how
  many large ones it wants), ``project(features)``, ``forward(views, index, labels, progress) -> Step`` and
  ``after_step(progress)``, where twin, queue, centre and prototypes move.

A ``Method`` may also say ``small_views = True``: the policy's small crops after the large views (multi-crop);
``wants_maps = True``: each view as a ``views.image.View``: pixels, what was drawn, the map into the image;
``per_class = K``: batches of P classes with K images each; ``rates``: parameters that learn at another rate;
``before_step(progress)``: called between backward and the optimiser's step (a head that is held still at first);
``batch_norm = "own"``: each process's BatchNorm keeps its own statistics, as the method shuffles its rows; else they
are those of the whole batch.

A view of images is (B, C, h, w); one of texts is (B, L), tokens with -1 for padding at the end, and all views of a call
are of one length. Given pairs and triplets are views as they are: anchors, positives, negatives. Beside ``encoder(x)``
(B, features), an encoder of text has ``encoder.tokens(x)`` (T, features), the vectors of the T tokens in the order of
``x[x >= 0]``, ``encoder.embedding.weight`` (V, width), ``encoder.vocabulary`` and ``encoder.specials``, the ids of
[UNK], [CLS], [SEP] and [MASK], -1 where there is none.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from nearfar.errors import UserError, nearest

_NOT_METHODS = {"parts", "words"}


def names(content: str | None = None) -> list[str]:
    """Every method there is a file for; with ``"image"`` or ``"text"`` those that learn from it."""
    found = (m.name for m in pkgutil.iter_modules(__path__))
    known = sorted(name.replace("_", "-") for name in found if name not in _NOT_METHODS)
    return [name for name in known if content is None or getattr(module(name), "CONTENT", content) == content]


def module(name: str) -> ModuleType:
    """The module of a method by its name."""
    if name not in names():
        raise UserError(f"unknown method {name!r}{nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
