"""A run is a folder: this file makes one, opens one, and uses one. It is the only file that knows everybody."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearfar import build, compare, gallery, leaks, robustness, wording, wordspaces
from nearfar import recipe as recipes
from nearfar.build import Input
from nearfar.data import Source, Splits, limits, to_stderr
from nearfar.errors import UserError, one_line
from nearfar.evaluate import Evaluation
from nearfar.evaluate import evaluate as judge
from nearfar.evaluate import neighbours as nearest_rows
from nearfar.text.tokenizer import Tokenizer
from nearfar.training import keeper
from nearfar.training.checkpoint import write_bytes
from nearfar.training.progress import Bar, bar_for_decoding
from nearfar.wording import Words, digest

CHECKPOINTS, SKIPPED, TOKENIZER = "checkpoints", "skipped.jsonl", "tokenizer.json"


def load(folder: str | Path) -> Run:
    """Open a run's folder."""
    return Run(Path(folder))


def tell_skipped(part: Source | None, say: Callable[[str], None]) -> None:
    if part is not None and part.skipped:
        first = part.skipped[0]
        what = "images" if part.origin is None else "texts"
        say(f"skipped {len(part.skipped)} unreadable {what}, the first {first.name}: {first.reason}"
            + f"; all of them in {SKIPPED}" * (len(part.skipped) > 1))  # fmt: skip


def skipped_lines(train: Source, test: Source | None) -> str:
    """Each image that was left out and why, as JSON a line; a part that was held out is of the same source."""
    parts = {"train": train.skipped}
    if test is not None and test.skipped is not train.skipped:
        parts["test"] = test.skipped
    return "".join(json.dumps({"part": part, "name": s.name, "reason": s.reason}) + "\n"
                   for part, rows in parts.items() for s in rows)  # fmt: skip


class Run:
    """A finished (or checkpointed) run: embed, evaluate, look.

    ``rank`` is the process's where several have trained it; on others than 0 it may not have been judged yet.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        if not (folder / "recipe.toml").is_file():
            what = "there is no such folder" if not folder.exists() else "it holds no recipe.toml"
            raise UserError(f"{folder} is no run: {what}")
        self.recipe = recipes.read(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @cached_property
    def _checkpoint(self) -> tuple[dict, dict]:
        found = keeper.newest(self.folder / CHECKPOINTS, to_stderr, keeper.METHOD)
        return found.tensors(keeper.METHOD), found.about

    @cached_property
    def about(self) -> dict[str, Any]:
        about = self._checkpoint[1]
        if not build.is_described(about, self.recipe.is_text):
            raise UserError(f"{self.folder}: its checkpoint does not say what it was trained on: it was edited")
        return about

    @cached_property
    def input(self) -> Input | Words:
        held = self.about["input"]
        if self.recipe.is_text:
            return Words(self._tokenizer(held["tokenizer"]))
        return Input(tuple(held["shape"]), held["low"], held["high"])

    def _tokenizer(self, wanted: str) -> Tokenizer:
        path = self.folder / TOKENIZER
        try:
            text = limits.bytes_of(path, limits.TOKENIZER).decode("utf-8")
        except (OSError, limits.TooLarge, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({one_line(error)}): without its tokeniser the run cannot read "
                            "text") from None  # fmt: skip
        if digest(text) != wanted:
            raise UserError(f"{path} is not the tokeniser that this run was trained with: it was edited or replaced")
        return Tokenizer.from_json(text)

    def _fresh(self) -> Any:
        if self.recipe.is_text:
            return build.model(self.recipe, self.input, len(self.about["classes"]), self.about["images"])
        tensors = self._checkpoint[0]
        c = self.input.shape[2]
        mean, std = (t.view(-1) for t in (tensors.get("encoder.mean", torch.zeros(c)),
                                          tensors.get("encoder.std", torch.ones(c))))  # fmt: skip
        if not len(mean) == len(std) == c:
            raise UserError(f"{self.folder}: the checkpoint does not fit the recipe; was recipe.toml edited?")
        return build.model(self.recipe, self.input, len(self.about["classes"]), self.about["images"], mean, std)

    @cached_property
    def method(self) -> Any:
        method = self._fresh()
        try:
            method.load_state_dict(self._checkpoint[0])
        except RuntimeError:
            raise UserError(f"{self.folder}: the checkpoint does not fit the recipe; was recipe.toml edited?") from None
        return method.eval()

    @property
    def encoder(self) -> torch.nn.Module:
        """The trained encoder: (B, C, H, W) in [0, 1], or tokens (B, L), -> (B, features)."""
        return self.method.encoder

    def open(
        self, source: Any, say: Callable[[str], None] = to_stderr, reading: Mapping[str, Any] | None = None
    ) -> Splits:  # fmt: skip
        """A source as the encoder takes it. reading: of texts, how columns are found (``columns="title"``)"""
        recipe = self.recipe
        if recipe.is_text and (reading or str(source) != recipe.source):
            recipe = recipe.changed(text=recipe.text.reading(**(reading or {})))
        with bar_for_decoding(None) as progress:
            return build.open_like(source, self.input, recipe, progress, say)

    def embed(self, source: Any, *, project: bool = False) -> np.ndarray:
        """Features before the projector (or after it), of images in their order. -> (N, d) float32

        Args:
            source: uint8 arrays (N, H, W) or (N, H, W, C), or anything ``train`` takes; of a source with
                splits, training images come first. Of texts also a list of them; of pairs the first is embedded.
        """
        splits = self.open(source)
        parts = [p for p in (splits.train, splits.test) if p is not None]
        return np.concatenate([self.embed_part(p, project) for p in parts])

    def embed_part(self, part: Source, project: bool = False) -> np.ndarray:
        return build.embed(self.method, part, self.input, project=project)

    def evaluate(
        self, source: Any = None, *, draws: int = 10, labels_per_class: tuple[int | str, ...] = (1, 5, 10),
        more: bool = False, robust: bool = False, say: Callable[[str], None] = lambda text: None,
        reading: Mapping[str, Any] | None = None,
    ) -> Evaluation | None:  # fmt: skip
        """Judge features, projections, the untrained encoder and raw pixels; write results and the report.

        Probes are fitted on the source's training part and judged on its test part (its own, or the one held
        out by the recipe's seed, which is the one training did not see). None where there are no labels. With
        ``robust``, also on corrupted test images and on each augmentation alone, under ``robustness`` in results.json.
        Texts are judged by their labels, by scores of pairs (Spearman) or by how pairs find each other, beside TF-IDF
        and averaged word vectors; ``reading`` says which columns are meant where their names do not.
        """
        own = source is None or str(source) == self.recipe.source
        if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], Source):
            (data, test), own = source, True
        else:
            splits = self.open(self.recipe.source if source is None else source, say, reading)
            data, test = wording.judged_by(splits, self.recipe, own) if self.recipe.is_text \
                else build.split(splits, self.recipe)  # fmt: skip
        if self.recipe.is_text:
            if robust:
                raise UserError(f"{self.folder} is of texts: --robust is for images")
            ground = None if own else wording.training_texts(self.recipe, say)
            return wordspaces.evaluate(self, data, test, ground=ground, draws=draws, more=more, say=say,
                                       labels_per_class=labels_per_class)  # fmt: skip
        spaces = gallery.Spaces(self, data, test)
        if robust:
            robustness.check(spaces)  # before anything is judged or written
        result, notes = None, gallery.notes_of(spaces)
        if test is None or data.labels is None or test.labels is None:
            say("no labels and so no accuracies: the report shows neighbours, map and spectrum")
        elif len(set(data.labels.tolist())) < 2:
            say("one class only: accuracies need two; the report shows neighbours, map and spectrum")
        else:
            result = judge(
                spaces.features(), data.labels, test.labels, data.classes, labels_per_class=labels_per_class,
                draws=draws, seed=0, more=more,
            )  # fmt: skip
            result.protocol["items hash"] = data.fingerprint() + test.fingerprint()
            compare.write(self.folder / "predictions.npz", result, test.labels)
            notes = [*result.notes, *notes]
        duplicates, pictures, said = leaks.judged(data, test, result, more=more)
        notes += said
        held = {"evaluation": None if result is None else result.to_dict() | {"notes": notes},
                "geometry": gallery.geometry_of(spaces), "source": str(data.spec),
                "duplicates": duplicates}  # fmt: skip
        if robust:
            if result is None:
                say("without labels robustness is the views' cosines alone")
            with Bar("robustness", None) as bar:
                held["robustness"], changed = robustness.measure(
                    spaces, result, progress=lambda share, text: bar.update(share, text=text))  # fmt: skip
            pictures["corrupted"] = gallery.thumbs(changed, 0.0, 1.0)
        write_bytes(self.folder / "results.json", json.dumps(held, indent=1))
        gallery.write(self.folder / "gallery.npz", spaces, pictures)
        self.report()
        for note in notes:
            say(note)
        return result

    def report(self) -> Path:
        """Write ``report.html`` from what lies in the folder; returns its path."""
        from nearfar import report

        return report.write(self.folder)

    def neighbours(self, source: Any, query: int | str | Path, k: int = 8) -> list[tuple[int, float]]:
        """The ``k`` items of a source nearest to one of them, or to an image file or a text: (index, cosine)."""
        part = self.open(source).train
        bank = self.embed_part(part)
        itself = str(query).isdigit()
        if itself:
            if int(query) >= len(part):
                what = "texts" if self.recipe.is_text else "images"
                raise UserError(f"query {query}: {part.spec} has {what} 0 to {len(part) - 1}")
            z = bank[int(query)][None]
        elif self.recipe.is_text:
            z = self.embed([str(query)])
        else:
            z = self.embed(self._single(query))
        index, cosine = nearest_rows(z, bank, min(k + itself, len(part)))
        rows = [(int(i), float(c)) for i, c in zip(index[0], cosine[0])]
        return [r for r in rows if not (itself and r[0] == int(query))][:k]

    def _single(self, path: str | Path) -> Any:
        """One image file as a source of one."""
        from nearfar.data import open_image

        return open_image(path, self.input.shape)
