"""Load an encoder of any origin, and judge it on a source beside raw pixels."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar import build, compare
from nearfar.data import Source, to_stderr
from nearfar.errors import UserError, nearest
from nearfar.evaluate import Evaluation
from nearfar.evaluate import evaluate as judge
from nearfar.foreign.encoder import ForeignEncoder, of_callable
from nearfar.foreign.spec import KNOWN, LIBRARIES, Choices, is_foreign
from nearfar.recipe import Recipe
from nearfar.training.checkpoint import write_bytes

if TYPE_CHECKING:
    from nearfar.run import Run

_UNKNOWN = "what the weights were trained on is not known here: test images may have been among it"


def load(model: str | Path | Callable, choices: Choices = Choices()) -> ForeignEncoder:  # noqa: B008
    """An encoder from its name (see ``nearfar evaluate --help``), or from a callable. Raises ``UserError``."""
    if callable(model):
        return dataclasses.replace(of_callable(model), image_size=choices.image_size)
    library, _, name = str(model).partition(":")
    if not is_foreign(str(model)):
        raise UserError(f"{model} is no encoder{nearest(library, LIBRARIES) if name else ''}: give {KNOWN}")
    return dataclasses.replace(_loaded(str(model), library, name, choices), image_size=choices.image_size)


def _loaded(model: str, library: str, name: str, choices: Choices) -> ForeignEncoder:
    if library not in LIBRARIES:
        from nearfar.foreign.onnx import from_onnx

        return from_onnx(Path(model), choices)
    if not name:
        raise UserError(f"{model} names no model: give {KNOWN}")
    if library == "transformers":
        from nearfar.foreign.hub import from_transformers

        return from_transformers(name, choices)
    from nearfar.foreign import vision

    name, _, weights = name.partition("@")
    return (vision.from_torchvision if library == "torchvision" else vision.from_timm)(name, weights, choices)


def evaluate_model(
    model: str | Path | Callable, source: Any = None, *, choices: Choices = Choices(), like: Run | None = None,  # noqa: B008
    out: str | Path | None = None, draws: int = 10, labels_per_class: tuple[int, ...] = (1, 5, 10), more: bool = False,
    say: Callable[[str], None] = to_stderr, show: bool | None = None,
) -> Evaluation:  # fmt: skip
    """Judge an encoder of any origin on a source, as a run is judged, beside raw pixels.

    Args:
        model: ``torchvision:NAME``, ``timm:NAME``, ``transformers:NAME_OR_FOLDER``, a path to an ONNX file; or a
            callable, images (B, C, H, W) float32 in [0, 1] -> (B, d).
        source: what ``train`` takes, with labels; the run's own where ``like`` is given and this is left out.
        choices: normalisation and size, where they are to be other than the model's own.
        like: a run: the source is opened and split as by it, so that ``nearfar compare`` can set both side by side.
            Otherwise as by a run with the defaults (and ``choices.image_size``).
        out: a folder for ``results.json`` and ``predictions.npz``; nothing is written where it is left out.

    Raises ``UserError`` in one line for what cannot be loaded or judged.

    >>> images = np.arange(2 * 40 * 64, dtype=np.uint8).reshape(80, 8, 8)
    >>> found = evaluate_model(lambda x: x.mean((2, 3)), (images, [0, 1] * 40), draws=2)
    >>> list(found.cells)
    ['<lambda>', 'raw pixels']
    """
    folder = None if out is None else _claimed(Path(out))
    encoder = load(model, choices)
    if source is None and like is None:
        raise UserError(f"{encoder.name}: on what? give a source of labelled images, or --like a run")
    source = like.recipe.source if source is None else source
    if like is not None and choices.image_size:
        raise UserError(f"--image-size {choices.image_size}: with --like images are as the run's; leave one out")
    splits = encoder.open(source, say) if like is None else like.open(source, say)
    train, test = build.split(splits, Recipe() if like is None else like.recipe)
    if train.labels is None:
        raise UserError(f"{train.spec} has no labels to judge by: nearfar embed writes the features")
    if test is None:
        raise UserError(f"{train.spec}: {len(train)} images are too few to hold some out for the test")
    parts = (train, test)
    features = {encoder.name: tuple(encoder.embed_part(p, show=show) for p in parts),
                "raw pixels": tuple(build.raw_pixels(p, (p.low, p.high)) for p in parts)}  # fmt: skip
    result = judge(features, train.labels, test.labels, train.classes, draws=draws, labels_per_class=labels_per_class,
                   seed=0, more=more)  # fmt: skip
    result.protocol["items hash"] = train.fingerprint() + test.fingerprint()
    result.protocol["model"] = dict(encoder.about)
    if folder is not None:
        _write(folder, result, train, test)
    return result


def folder_for(model: str, source: str) -> Path:
    """``judged/NAME-on-SOURCE``: where a model's results are written unless it is said otherwise.

    >>> folder_for("timm:resnet18@w/best.safetensors", "data/birds/").as_posix()
    'judged/timm-resnet18-best-on-birds'
    """
    library, colon, name = model.partition(":")
    name, _, weights = (name if colon else library).partition("@")
    words = [library if colon else "", Path(name).name, Path(weights).stem, "on", Path(source.rstrip("/")).stem]
    return Path("judged") / re.sub(r"[^\w.]+", "-", "-".join(w for w in words if w))


def _claimed(folder: Path) -> Path:
    """A folder that holds nothing, or an earlier judgement that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give --out a folder")
    if folder.is_dir() and {p.name for p in folder.iterdir()} - {"results.json", "predictions.npz"}:
        raise UserError(f"{folder} holds other things than a judged model: pass another --out")
    return folder


def _write(folder: Path, result: Evaluation, train: Source, test: Source) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    compare.write(folder / "predictions.npz", result, test.labels)
    unknown = [] if result.protocol["model"]["weights"] == "random" else [_UNKNOWN]
    held = {"evaluation": result.to_dict() | {"notes": [*result.notes, *unknown]}, "source": str(train.spec)}
    write_bytes(folder / "results.json", json.dumps(held, indent=1))
