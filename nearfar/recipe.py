"""The checked description of a run: everything that decides it, in one frozen record and one TOML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nearfar import methods
from nearfar.data import limits
from nearfar.data.source import shown
from nearfar.encoders.words import is_text
from nearfar.errors import UserError, at_least, brief, nearest, one_line
from nearfar.text.options import TextOptions
from nearfar.training.optim import Optim
from nearfar.views.policies import POLICIES
from nearfar.views.policy import ImagePolicy

_TABLES = ("settings", "views", "optim", "text")
_RECORDS = {"optim": Optim, "text": TextOptions}  # tables that are records of their own
_OF_IMAGES = ("image_size", "patch", "long_side", "policy")


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, how, and for how long. Recipe, seed and data decide the result."""

    source: str = "digits"
    """images: a folder of them or of tar shards, .npy, .npz, IDX file, torchvision:NAME, hf:NAME or digits; text: .txt,
    .csv, .tsv, .jsonl, .parquet, a folder or .zip of text files, text:hf:NAME or pydoc"""
    method: str = "simclr"
    """what is learnt from: see `nearfar methods`"""
    encoder: str = "auto"
    """images: cnn, resnet10, resnet18, torchvision:NAME or timm:NAME; text: transformer, bag, gru, lstm,
    transformers:NAME or :FOLDER; auto: cnn; for text bag, or transformer where a method wants words in context"""
    init: str = ""
    """a run whose encoder, and tokeniser, training starts from; left out: fresh weights"""
    width: int = 0
    """channels of the first layer of our own encoders, or of a token; 0: their default"""
    epochs: float = 0.0
    """budget in passes over the training items"""
    steps: int = 0
    """budget in optimiser steps"""
    minutes: float = 0.0
    """budget in minutes of training; 5 where no budget is given"""
    batch: int = 256
    """images or texts a step"""
    accumulate: int = 1
    """parts of a batch that pass one after the other before a step, each contrasted within itself"""
    seed: int = 0
    """decides weights, order and views"""
    image_size: int = 0
    """pixels a side; 0: the data's own, at most 96 for folders"""
    patch: int = 0
    """train on squares of so many pixels, cut from a folder's large pictures; 0: on whole pictures"""
    long_side: int = 0
    """pixels of the longer side of pictures before patches are cut; 0: their own"""
    holdout: float = 0.2
    """share of a labelled source without a test split that is kept out of training to judge by; 0: none"""
    max_bad: float = 0.05
    """largest share of unreadable images, or lines of text, that is put up with"""
    policy: str = "auto"
    """augmentation policy: auto, or one that `nearfar views --help` lists"""
    precision: str = "auto"
    """auto, 32-true, bf16-mixed or 16-mixed; auto: bf16 where the hardware has it"""
    views: Any = field(default_factory=dict)
    """changes to the policy, to every kind of view or a list of one for each; after resolving, all of its values"""
    settings: dict[str, Any] = field(default_factory=dict)
    """the method's own settings; after resolving, all of them"""
    optim: Optim = field(default_factory=Optim)
    text: TextOptions = field(default_factory=TextOptions)
    pace: tuple[tuple[float, float, float], ...] = ()
    """written by a finished run that was timed: its steps' shares of the budget, so that it can be rerun"""

    def __post_init__(self) -> None:
        _check_types(Recipe, vars(self), "")
        at_least(self, batch=1, accumulate=1, width=0, epochs=0, steps=0, minutes=0, image_size=0, patch=0, long_side=0,
                 seed=0)  # fmt: skip
        if self.batch % self.accumulate:
            raise UserError(f"batch = {self.batch} does not divide into accumulate = {self.accumulate} parts")
        if self.seed >= 2**63:
            raise UserError(f"seed = {brief(self.seed)} must be below 2**63")
        if not 0 <= self.holdout < 1 or not 0 <= self.max_bad <= 1:
            raise UserError(f"holdout = {self.holdout} and max_bad = {self.max_bad} are shares: give 0 to 1")
        if sum(v > 0 for v in (self.epochs, self.steps, self.minutes)) > 1:
            raise UserError("more than one budget: give one of epochs, steps and minutes")
        if self.policy != "auto" and self.policy not in POLICIES:
            raise UserError(f"unknown policy {brief(self.policy)}{nearest(self.policy, [*POLICIES, 'auto'])}")
        known = ("auto", "32-true", "bf16-mixed", "16-mixed", "64-true")
        if self.precision not in known:
            raise UserError(f"unknown precision {brief(self.precision)}{nearest(self.precision, known)}")
        config = methods.module(self.method).Config
        object.__setattr__(self, "settings", _check_types(config, self.settings, "settings."))
        object.__setattr__(self, "views", _check_views(self.views))
        object.__setattr__(self, "pace", tuple(tuple(map(float, row)) for row in self.pace))
        config(**self.settings)

    @property
    def is_text(self) -> bool:
        """Whether texts are learnt from, which the encoder decides."""
        return is_text(self.encoder)

    def method_config(self) -> Any:
        """The method's ``Config`` with this recipe's settings."""
        return methods.module(self.method).Config(**self.settings)

    def changed(self, **values: Any) -> Recipe:
        return dataclasses.replace(self, **values)


def of(method: str, preset: str = "", **changes: Any) -> Recipe:
    """A method's own recipe: ``small``, for small machines, where no preset is named; ``paper``, as published.

    >>> of("simclr", batch=64).batch, of("simclr", "paper").optim.name
    (64, 'lars')
    """
    held = methods.module(method).PRESETS
    preset = preset or "small"
    if preset not in held:
        raise UserError(f"{method} has no preset {brief(preset)}{nearest(preset, held)}")
    values = dict(held[preset]) | {"method": method}
    values |= {table: record(**values.get(table, {})) for table, record in _RECORDS.items()}
    return Recipe(**values | changes)


def filled(method: str, preset: str = "") -> Recipe:
    """:func:`of`, with every one of the method's settings."""
    recipe = of(method, preset)
    return recipe.changed(settings=dataclasses.asdict(recipe.method_config()))


def turned(recipe: Recipe, method: str, preset: str = "") -> Recipe:
    """A recipe turned to another method: its source, encoder, size and budget with that method's own preset."""
    if (not method or method == recipe.method) and not preset:
        return recipe
    own = of(method or recipe.method, preset)
    return recipe.changed(method=own.method, settings=own.settings, optim=own.optim, batch=own.batch, pace=(),
                          policy=own.policy, views=own.views)  # fmt: skip


def _check_views(views: Any) -> Any:
    """One table of changes, or a tuple of one a kind of view."""
    if isinstance(views, dict):
        return _check_types(ImagePolicy, views, "views.")
    if not isinstance(views, list | tuple) or not views or not all(isinstance(v, dict) for v in views):
        raise UserError(f"views = {brief(views)}: give a table, [views], or one for each kind of view, [[views]]")
    return tuple(_check_types(ImagePolicy, v, f"views[{i}].") for i, v in enumerate(views))


def _check_types(cls: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check that every key is a field of ``cls`` and its value of the field's kind; ints become floats."""
    known = {f.name: str(f.type) for f in fields(cls)}
    out = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"unknown key {where}{shown(key)[:60]}{nearest(key, known)}")
        kind = known[key]
        if kind == "float" and type(value) is int and abs(value) < 2**1000:
            value = float(value)
        wanted = {"float": float, "int": int, "str": str, "bool": bool}.get(kind)
        if wanted and type(value) is not wanted:
            raise UserError(f"{where}{key} = {brief(value)} is no {kind}: give {_EXAMPLES[kind]}")
        if kind == "str" and key not in ("source", "init") and len(value) > 200:
            raise UserError(f"{where}{key} = {brief(value)} is longer than any name")
        out[key] = value
    return out


_EXAMPLES = {"float": "a number such as 0.5", "int": "a whole number", "str": "text", "bool": "true or false"}


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML text. ``from_toml(to_toml(r)) == r``, floats bit for bit."""
    lines = []
    for f in fields(recipe):
        if f.name not in (*_TABLES, "pace") and not (recipe.is_text and f.name in _OF_IMAGES):
            lines.append(f"{f.name} = {_value(getattr(recipe, f.name))}")
    if recipe.pace:
        rows = ",\n".join(f"  [{', '.join(map(repr, row))}]" for row in recipe.pace)
        lines.append(f"# step, share, slope: replayed in place of the clock\npace = [\n{rows},\n]")
    for table in _TABLES:
        held = getattr(recipe, table)
        if table == "text" and not recipe.is_text and held == TextOptions():
            continue
        for values in held if isinstance(held, tuple) else (held,):
            values = values if isinstance(values, dict) else dataclasses.asdict(values)
            if values or isinstance(held, tuple):
                lines.append(f"\n[[{table}]]" if isinstance(held, tuple) else f"\n[{table}]")
                lines += [f"{key} = {_value(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_ESCAPES.get(c, c) if ord(c) >= 32 and ord(c) != 127 else f"\\u{ord(c):04x}"
                             for c in value) + '"'  # fmt: skip
    return repr(value)


_ESCAPES = {'"': '\\"', "\\": "\\\\"}


def from_toml(text: str, name: str = "recipe") -> Recipe:
    """Read a recipe; an unknown key, a wrong type or broken TOML is one line that names it."""
    try:
        held = limits.toml_of(text)
    except ValueError as error:
        raise UserError(f"{name} is no TOML: {one_line(error)}") from None
    known = {f.name for f in fields(Recipe)}
    for key in held:
        if key not in known:
            raise UserError(f"{name}: unknown key {brief(key)}{nearest(key, known)}")
    for table in _TABLES:
        if not isinstance(held.get(table, {}), dict | list if table == "views" else dict):
            raise UserError(f"{name}: {table} must be a table, [{table}]")
    try:
        for table, record in _RECORDS.items():
            if table in held:
                held[table] = record(**_check_types(record, held[table], f"{table}."))
        return Recipe(**held)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {one_line(error)}") from None


def read(path: str | Path) -> Recipe:
    """A recipe from a file, or from a run's folder."""
    path = Path(path)
    path = path / "recipe.toml" if path.is_dir() else path
    try:
        return from_toml(limits.bytes_of(path, limits.TOML).decode("utf-8"), str(path))
    except limits.TooLarge as error:
        raise UserError(f"{path} is no recipe: {error}") from None
    except OSError:
        raise UserError(f"{path}: no such recipe") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no text file") from None
