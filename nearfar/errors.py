"""What is said to a person: one line that names the value and the fix."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(ValueError):
    """A mistake in what was asked for. The message is one line; commands print it and exit with 2."""


class MissingExtra(UserError):
    """An optional library is absent, or present and broken."""


class NotFinite(UserError):
    """Values that a loss was to be taken of are NaN or infinite."""


class Elsewhere(UserError):
    """Another process has failed, and says why."""


class Preempted(Exception):
    """Training was asked to stop by a signal; a checkpoint has been written, and it can be resumed."""


# extra -> (module that shows it is there, what it gives)
EXTRAS: dict[str, tuple[str, str]] = {
    "vision": ("torchvision", "torchvision's backbones and data sets (torchvision:NAME)"),
    "coco": ("faster_coco_eval", "average precision of detectors (transfer)"),
    "timm": ("timm", "timm's backbones (timm:NAME)"),
    "transformers": ("transformers", "transformers' models to judge (transformers:NAME)"),
    "onnx": ("onnxruntime", "ONNX files to judge or export (FILE.onnx)"),
    "faiss": ("faiss", "approximate neighbours in very large banks"),
    "text": ("tokenizers", "tokenisers of text, learnt or loaded"),
    "hf": ("datasets", "Hugging Face data sets (hf:NAME)"),
    "parquet": ("pyarrow", "embeddings as Parquet (embed -o out.parquet)"),
    "tensorboard": ("tensorboard", "TensorBoard events beside metrics.jsonl"),
}


def at_least(config: object, **lows: float) -> None:
    """One line where one of these settings is below its least value, or NaN."""
    for name, low in lows.items():
        value = getattr(config, name)
        if not value >= low:
            raise UserError(f"{name} = {value} must be at least {low}")


def one_line(error: BaseException) -> str:
    """The first line of an error's text, cut at 200 characters, or its class where it has no text."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]


def brief(value: object) -> str:
    """A value as it would be typed, cut at 60 characters.

    >>> brief("a" * 100)[-6:]
    'aaaaa…'
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'simclr'?"``, or the known names where none is near, cut at 280 characters."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    listed = ", ".join(known)
    listed = listed if len(listed) <= 280 else f"{listed[:280]}…"
    return f"; did you mean {close[0]!r}?" if close else f"; known: {listed}"


def require(module: str, extra: str, wanted_by: str) -> ModuleType:
    """Import an optional module, or say in one line who wanted it and what to type.

    A module that is present but fails to import (torchvision beside a torch it was not built for raises
    ``RuntimeError``, not ``ImportError``) is told apart from one that is absent.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == module.split(".")[0]:
            raise MissingExtra(
                f"{wanted_by} needs {module}, which is not installed: pip install 'nearfar[{extra}]'"
            ) from None
        raise MissingExtra(f"{wanted_by} needs {module}, whose import fails: {one_line(error)}") from None
    except Exception as error:
        raise MissingExtra(
            f"{wanted_by} needs {module}, which is installed but does not import beside this torch "
            f"({one_line(error)}): install matched builds with pip install torch torchvision"
        ) from None
