"""A scikit-learn transformer: images or texts in, embeddings out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from nearfar import build
from nearfar import recipe as recipes
from nearfar.errors import UserError
from nearfar.learning import Hooks, fresh, learn
from nearfar.text import TextOptions


class Embedder(TransformerMixin, BaseEstimator):
    """Learn an embedding of images or texts and map them to it; works in a ``Pipeline``.

    Args:
        method, encoder, width, epochs, batch, policy, settings, views, optim: as in
            :class:`nearfar.recipe.Recipe`; ``batch`` is lowered to the number of items where there are fewer.
        text: changes to :class:`nearfar.text.TextOptions`.
        epochs: passes over the items (a count, not minutes, so that a fit is repeatable).
        image_shape: (H, W) or (H, W, C) of rows that are flattened images. Where it is None, rows of a square
            number of values are square grey images, and others strips one pixel high.
        random_state: the seed, or a ``RandomState`` to draw it from.

    ``fit(X)`` takes (N, H, W), (N, H, W, C) or flattened (N, H·W·C); uint8, or floats, whose range in ``fit``
    stands for black to white; or a list of texts. Attributes: ``n_features_in_`` (for flattened
    rows), ``shape_`` (of images), ``recipe_``.

    >>> from sklearn.datasets import load_digits
    >>> X = load_digits().images[:64]
    >>> Embedder(epochs=1, batch=32).fit(X).transform(X[:3]).shape
    (3, 256)
    >>> texts = [f"{kind} {i} of the {kind}s" for kind in ("boat", "bank") for i in range(40)]
    >>> Embedder(encoder="bag", width=16, epochs=1, batch=20, text={"vocabulary": 60}).fit_transform(texts).shape
    (80, 16)
    """

    def __init__(
        self, method: str = "simclr", encoder: str = "auto", width: int = 0, epochs: float = 20, batch: int = 256,
        policy: str = "auto", settings: dict | None = None, views: dict | list | None = None, optim: Any = None,
        text: dict | None = None, image_shape: tuple[int, ...] | None = None, random_state: Any = 0,
    ) -> None:  # fmt: skip
        self.method, self.encoder, self.width, self.epochs = method, encoder, width, epochs
        self.batch, self.policy, self.settings, self.views, self.optim = batch, policy, settings, views, optim
        self.text, self.image_shape, self.random_state = text, image_shape, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    def _images(self, x: Any, fitting: bool) -> np.ndarray:
        """(N, H, W, C) of what was given, checked as scikit-learn checks."""
        if getattr(x, "ndim", 2) <= 2:
            x = validate_data(self, x, reset=fitting, dtype="numeric", ensure_min_samples=2 if fitting else 1)
            shape = self._flat_shape(x.shape[1]) if fitting else self.shape_
            if int(np.prod(shape)) != x.shape[1]:
                raise UserError(f"rows of {x.shape[1]} values are no images of {'×'.join(map(str, shape))}")
            x = x.reshape(len(x), *shape)
        x = np.asarray(x)
        x = x[..., None] if x.ndim == 3 else x
        if not fitting and tuple(x.shape[1:]) != self.shape_:
            raise UserError(f"images of {x.shape[1:]} where fit saw {self.shape_}")
        return x.astype(np.float64) if x.dtype == np.float16 else x

    def _flat_shape(self, n: int) -> tuple[int, int, int]:
        if self.image_shape is not None:
            shape = tuple(self.image_shape)
            return shape if len(shape) == 3 else (*shape, 1)
        side = math.isqrt(n)
        return (side, side, 1) if side * side == n else (1, n, 1)

    def fit(self, X: Any, y: Any = None) -> Embedder:
        """Train on images; ``y`` is used by supervised methods alone."""
        from nearfar import methods
        from nearfar.training.optim import Optim

        labels = y if methods.module(self.method).SUPERVISED else None
        texts = _texts(X)
        images = self._images(X, fitting=True) if texts is None else texts
        given = (images, labels) if labels is not None else images
        state = self.random_state
        seed = state if isinstance(state, int | np.integer) else np.random.default_rng().integers(2**31)
        if isinstance(state, np.random.RandomState):
            seed = state.randint(2**31)
        recipe = recipes.of(
            self.method, source="array", encoder=self.encoder, width=self.width, epochs=float(self.epochs),
            batch=min(self.batch, len(images)), text=TextOptions(**(self.text or {})), holdout=0.0,
            policy=self.policy, settings=dict(self.settings or {}),
            views=self.views or {}, optim=Optim(**(self.optim or {})), seed=int(seed),
        )  # fmt: skip
        recipe = build.with_encoder(recipe, given)
        source = build.open_like(given, None, recipe).train
        recipe = build.resolve(recipe, source)
        learnt = learn(source, recipe, fresh(source, recipe), Hooks(show=False))
        self.shape_, self.recipe_, self.input_ = tuple(source.shape), learnt.recipe, learnt.input
        self.model_ = learnt.method.cpu()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Features before the projector. -> (N, features) float32"""
        check_is_fitted(self, "model_")
        texts = _texts(X)
        given = self._images(X, fitting=False) if texts is None else texts
        source = build.open_like(given, self.input_, self.recipe_.changed(image_size=0)).train
        return build.embed(self.model_, source, self.input_)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        check_is_fitted(self, "model_")
        return np.array([f"nearfar{i}" for i in range(self.model_.encoder.features)], dtype=object)


def _texts(x: Any) -> list[str] | None:
    """A list of texts, where that is what was given: a list, or a column of one."""
    named = getattr(getattr(x, "dtype", None), "kind", "") == "O"  # a column of pandas or NumPy
    held = x.tolist() if named else x if isinstance(x, list | tuple) else None
    return list(held) if held and all(isinstance(t, str) for t in held) else None
