"""Pre-trained models of text, judged as a run is, beside the same with fresh weights, TF-IDF and word vectors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearfar import build, compare, wording
from nearfar.encoders.hugging_face import RANDOM
from nearfar.errors import UserError
from nearfar.evaluate import Evaluation
from nearfar.recipe import Recipe
from nearfar.text import TextOptions
from nearfar.training.checkpoint import write_bytes
from nearfar.wordspaces import WordSpaces, judged

_LONGEST = 128  # tokens of a text that are read


@dataclass
class Pretrained:
    """A model that stands where a run would."""

    recipe: Recipe
    input: Any
    method: Any

    def _fresh(self) -> Any:
        name = self.recipe.encoder.removesuffix(RANDOM) + RANDOM
        fresh = build.model(self.recipe.changed(encoder=name), self.input, 0, 1)
        fresh.eval()
        return fresh


def evaluate_text_model(
    name: str, source: Any, *, out: str | Path | None = None, draws: int = 10,
    labels_per_class: tuple[int | str, ...] = (1, 5, 10), more: bool = False, pooling: str = "", prefix: str = "",
    reading: Mapping[str, Any] | None = None, say: Callable[[str], None] = lambda text: None,
) -> Evaluation:  # fmt: skip
    """Judge ``transformers:NAME`` or ``transformers:FOLDER`` on texts with labels, on scored pairs or on bare pairs.

    Args:
        out: a folder for results.json (and predictions.npz); nothing is written where it is left out.
        pooling: mean (the default), cls, last or max, as the model was trained.
        prefix: written before each text.

    TF-IDF and word vectors are fitted on the texts that are judged, their training part where there is one. Raises
    ``UserError``.
    """
    if not name.startswith("transformers:"):
        raise UserError(f"{name} takes images and {source} is text: give transformers:NAME or a folder of one")
    options = dataclasses.replace(TextOptions(max_length=_LONGEST, pooling=pooling, prefix=prefix, dropout=0.0),
                                  **dict(reading or {}))  # fmt: skip
    recipe = Recipe(source=str(source), method="simcse", settings={"head": 0}, encoder=name, text=options)
    splits = build.open_like(source, None, recipe, None, say)
    train, test = wording.judged_by(splits, recipe, False)
    if test is None:
        raise UserError(f"{train.spec} has nothing to judge by: labels, scores or pairs")
    given = build.input_of(train)
    method = build.model(recipe, given, 0, 1)
    method.eval()
    model = Pretrained(recipe, given, method)
    found = judged(WordSpaces(model, train, test), draws, labels_per_class, more)
    if found is None:
        raise UserError(f"{train.spec} has one class only: nothing to judge by")
    result = _called(found, name)
    if out is not None:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        if result.judgements:
            compare.write(folder / "predictions.npz", result, test.labels)
        held = {"evaluation": result.to_dict(), "source": train.spec}
        write_bytes(folder / "results.json", json.dumps(held, indent=1))
    return result


def _called(result: Evaluation, name: str) -> Evaluation:
    """The model's row under its own name."""
    own = "transformers:" + Path(name.removeprefix("transformers:")).name
    renamed = lambda held: {own if k == "nearfar" else k: v for k, v in held.items()}  # noqa: E731
    return dataclasses.replace(result, cells=renamed(result.cells), judgements=renamed(result.judgements),
                               more=renamed(result.more))  # fmt: skip
