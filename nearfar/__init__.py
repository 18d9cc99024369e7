"""Contrastive learning, the whole way through: train, see and use an embedding.

>>> import nearfar
>>> run = nearfar.train("digits", minutes=0.5)          # doctest: +SKIP
>>> features = run.embed(images)                        # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# imported where they are first used, so that `nearfar --help` need not wait for torch
_WHERE = {
    "train": "nearfar.pretrain", "load": "nearfar.run", "Run": "nearfar.run", "Recipe": "nearfar.recipe",
    "evaluate_model": "nearfar.foreign.judge", "Embedder": "nearfar.estimator", "UserError": "nearfar.errors",
    "Transferred": "nearfar.transferred", "export": "nearfar.exports",
}  # fmt: skip
__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        try:
            return importlib.import_module(f"nearfar.{name}")
        except ModuleNotFoundError:
            raise AttributeError(f"module 'nearfar' has no attribute {name!r}") from None
    module = importlib.import_module(_WHERE[name])
    value = getattr(module, name)
    globals()[name] = value
    return value
