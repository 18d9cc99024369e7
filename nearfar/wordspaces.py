"""What a run of texts is worth: its embeddings beside what needs no training, judged by labels, scores or pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nearfar import build, compare, gallery, lexical, wording
from nearfar.data import Source
from nearfar.encoders.hugging_face import RANDOM
from nearfar.evaluate import Evaluation
from nearfar.evaluate import evaluate as judge
from nearfar.evaluate.sentences import judge_pairs, judge_retrieval
from nearfar.recipe import Recipe
from nearfar.text import Texts
from nearfar.text.tokenizer import Tokenizer
from nearfar.training.checkpoint import write_bytes
from nearfar.training.loop import step_generator
from nearfar.views.text import TextViews

if TYPE_CHECKING:
    from nearfar.run import Run

_GROUND = 200_000  # texts that TF-IDF and word vectors are fitted on, at most
_PAIRS, _ORIGINALS, _VIEWS, _LETTERS = 1000, 8, 3, 300
Embed = Callable[[Source], Any]  # (N, d), dense or sparse


class WordSpaces:
    """The embeddings of one source of texts that are judged side by side, each computed once.

    ``ground``: the texts that TF-IDF and word vectors are fitted on: what the run was trained on, where it is at hand.
    """

    def __init__(self, run: Run, train: Source, test: Source | None, ground: Texts | None = None) -> None:
        self.run, self.train, self.test = run, train, test
        self.shown = test if test is not None else train
        ground = train.origin.texts if ground is None else ground
        few = np.unique(np.linspace(0, len(ground) - 1, min(len(ground), _GROUND)).astype(np.int64))
        self.ground = ground if len(few) == len(ground) else ground.subset(few)
        self._held: dict[tuple[str, str], Any] = {}

    @cached_property
    def untrained(self) -> Any:
        """The same encoder with its first weights, BatchNorm's statistics measured on training texts."""
        method = self.run._fresh()
        build.calibrate(method, self.train, self.run.input)
        return method

    @cached_property
    def _tf_idf(self) -> Callable[[list[str]], Any]:
        return lexical.tf_idf(self.ground.every())

    @cached_property
    def _words(self) -> lexical.Words:
        return lexical.word_vectors(list(self.ground.every()))

    @cached_property
    def embedders(self) -> dict[str, Embed]:
        """By name, what embeds the first text of each row. -> (N, d)"""
        def by(method: Any, project: bool = False) -> Embed:
            return lambda part: build.embed(method, part, self.run.input, project=project)

        return {
            "nearfar": by(self.run.method), "projection": by(self.run.method, True),
            "untrained encoder": lambda part: by(self.untrained)(part),
            "TF-IDF": lambda part: self._tf_idf(part.origin.first()),
            "averaged word vectors": lambda part: self._words.averaged(part.origin.first()),
            "SIF word vectors": lambda part: self._words.sif(part.origin.first()),
        }  # fmt: skip

    def _embedded(self, name: str, which: str) -> Any:
        """One part by one embedding: ``train``, ``test``, or ``second``, the other texts of shown pairs."""
        if (name, which) not in self._held:
            part = wording.slot(self.shown, 1) if which == "second" else getattr(self, which)
            self._held[name, which] = self.embedders[name](part)
        return self._held[name, which]

    @cached_property
    def judged(self) -> tuple[str, ...]:
        """What is judged: projections where they are not the features themselves."""
        method = self.run.method
        h = torch.linspace(-1, 1, 2 * method.encoder.features, device=next(method.parameters()).device).view(2, -1)
        with torch.no_grad():
            same = torch.equal(method.project(h), h)
        return tuple(name for name in self.embedders if not (same and name == "projection"))

    def features(self) -> dict[str, tuple[Any, Any]]:
        """``{name: (train, test)}``, of the first text of each row."""
        return {name: (self._embedded(name, "train"), self._embedded(name, "test")) for name in self.judged}

    def on_shown(self, name: str) -> np.ndarray:
        return self._embedded(name, "train" if self.test is None else "test")

    def sides(self, name: str) -> tuple[Any, Any]:
        """Both texts of each shown pair, (N, d) each."""
        return self.on_shown(name), self._embedded(name, "second")

    @cached_property
    def sample(self) -> np.ndarray:
        """Which texts are shown: at most 1,500, the same each time."""
        return gallery.some_of(self.shown)

    @cached_property
    def two_views(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Two views of shown texts: of pairs the pair, else two passes with the recipe's noise and dropout."""
        part = self.shown.subset(self.sample[:_PAIRS])
        methods = {"nearfar": (self.run.method, False), "projection": (self.run.method, True),
                   "untrained encoder": (self.untrained, False)}  # fmt: skip
        return {name: self._two(part, method, project) for name, (method, project) in methods.items()}

    @torch.no_grad()
    def _two(self, part: Source, method: Any, project: bool) -> tuple[np.ndarray, np.ndarray]:
        views = wording.views(self.run.recipe, method.encoder, 2)
        device = next(method.parameters()).device
        out: list[list[np.ndarray]] = [[], []]
        method.encoder.train(part.shape[0] == 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.run.recipe.seed)
            for at in range(0, len(part), 250):
                content = part.read(np.arange(at, min(at + 250, len(part))))
                for side, x in zip(out, views(content, step_generator(self.run.recipe.seed, 10**9 + at), device)):
                    h = method.encoder(x)
                    side.append((method.project(h) if project else h).float().cpu().numpy())
        method.encoder.eval()
        return np.concatenate(out[0]), np.concatenate(out[1])

    def appearance(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """What the report shows of these texts, and of a few of their views."""
        texts = self.shown.origin.texts
        few, tokenizer = rows[:_ORIGINALS], self.run.input.tokenizer
        views = wording.views(self.run.recipe, self.run.encoder, _VIEWS)
        seen = views(self.shown.read(few), step_generator(self.run.recipe.seed, 2 * 10**9))  # V of (m, L)
        said = [[text[:_LETTERS] for text in row] for row in _in_words(tokenizer, seen)]
        return {"texts": np.array([texts.text(int(i))[:_LETTERS] for i in rows]),
                "names": np.array([f"{i}" for i in rows]),
                "views_original": np.array([texts.text(int(i))[:_LETTERS] for i in few]), "views": np.array(said),
                "views_noise": np.array("none" if views.is_plain else "some")}  # fmt: skip


def seen(recipe: Recipe, *, rows: int, large: int, seed: int) -> list[tuple[str, list[str]]]:
    """Texts spread over a source, each with ``large`` views in words by the recipe's noise."""
    part = build.open_like(recipe.source, None, recipe).train
    tokenizer, texts = part.origin.tokenizer, part.origin.texts
    few = np.unique(np.linspace(0, len(part) - 1, min(rows, len(part))).astype(np.int64))
    views = TextViews(recipe.text, large, tokenizer.specials, tokenizer.size)(part.read(few), step_generator(seed, 0))
    return [(texts.text(int(i)), row) for i, row in zip(few, _in_words(tokenizer, views))]


def _in_words(tokenizer: Tokenizer, views: list[Tensor]) -> list[list[str]]:
    """Each text's views as they read. V of (m, L) -> m of V"""
    return [[tokenizer.decode(row[row >= 0].tolist()) for row in rows] for rows in zip(*views)]


def evaluate(
    run: Run, train: Source, test: Source | None, *, ground: Texts | None = None, draws: int = 10,
    labels_per_class: tuple[int | str, ...] = (1, 5, 10), more: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation | None:  # fmt: skip
    """Judge a run's texts by what they come with, write results, gallery and report.

    Scores: Spearman's and Pearson's correlation of cosines with them. Labels: kNN and linear probe. Pairs without
    either: how well the first text finds the second among all. None where there is none of these.
    """
    spaces = WordSpaces(run, train, test, ground)
    result, notes, pictures = judged(spaces, draws, labels_per_class, more), gallery.notes_of(spaces, "text"), {}
    if result is None:
        say("nothing to judge by, neither labels of two classes, scores nor pairs: the report shows neighbours, map "
            "and spectrum")  # fmt: skip
    else:
        notes = [*result.notes, *notes]
        if run.recipe.encoder.startswith("transformers:") and not run.recipe.encoder.endswith(RANDOM):
            notes.append(f"the untrained encoder is {run.recipe.encoder} as it came, before this training")
        if result.judgements:
            compare.write(run.folder / "predictions.npz", result, test.labels)
        if test.scores is not None:
            pictures = _scored(spaces)
    held = {"evaluation": None if result is None else result.to_dict() | {"notes": notes},
            "geometry": gallery.geometry_of(spaces), "source": str(train.spec)}  # fmt: skip
    write_bytes(run.folder / "results.json", json.dumps(held, indent=1))
    gallery.write(run.folder / "gallery.npz", spaces, pictures)
    run.report()
    for note in notes:
        say(note)
    return result


def judged(spaces: Any, draws: int, labels_per_class: tuple[int | str, ...], more: bool) -> Evaluation | None:
    """The table of all embeddings, by what the test texts come with."""
    train, test = spaces.train, spaces.test
    if test is None:
        return None
    if test.scores is not None:
        result = judge_pairs({name: spaces.sides(name) for name in spaces.judged}, test.scores)
    elif test.labels is not None and len(set(train.labels.tolist())) > 1:
        result = judge(spaces.features(), train.labels, test.labels, train.classes, labels_per_class=labels_per_class,
                       draws=draws, seed=0, more=more, what="text")  # fmt: skip
    elif test.shape[0] > 1:
        sought = np.unique(list(test.origin.texts.column(1)), return_inverse=True)[1]  # equal texts are equally right
        result = judge_retrieval({name: spaces.sides(name) for name in spaces.judged}, sought)
    else:
        return None
    result.protocol["items hash"] = train.fingerprint() + test.fingerprint()
    result.protocol["TF-IDF and word vectors"] = f"fitted on {len(spaces.ground):,} texts of {spaces.ground.spec}"
    return result


def _scored(spaces: WordSpaces) -> dict[str, np.ndarray]:
    """Cosines of at most 1,500 scored pairs, for the report."""
    rows, texts = spaces.sample, spaces.shown.origin.texts
    names = ["nearfar", "untrained encoder", "TF-IDF"]
    sides = {name: spaces.sides(name) for name in names}
    return {"pair_scores": spaces.shown.scores[rows], "pair_spaces": np.array(names),
            "pair_cosines": np.stack([lexical.cosines(*(s[rows] for s in sides[n])) for n in names]),
            "pair_texts": np.array([[t[:_LETTERS] for t in texts.row(int(i))[:2]] for i in rows])}  # fmt: skip
