"""Text on several processes: batches, noise and masks are dealt out as one process would have drawn them."""

import numpy as np
import torch
from processes import torchrun

from nearfar import build
from nearfar import recipe as recipes
from nearfar.learning import Hooks, fresh, learn
from nearfar.text import TextOptions, TextSplits, open_texts
from nearfar.training.engine import Engine, launch

METHODS = ("simcse", "quick-thoughts", "masked-lm", "simclr", "moco")


def documents() -> TextSplits:
    """Sentences of different lengths in documents of four, some of them twice."""
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(50)]
    texts = [" ".join(rng.choice(words, rng.integers(2, 9))) for _ in range(64)]
    texts[10] = texts[50]
    return _in_documents(open_texts(texts).train)


def _in_documents(texts) -> TextSplits:
    import dataclasses

    return TextSplits(dataclasses.replace(texts, documents=np.arange(len(texts)) // 4))


def learnt(method: str, fabric) -> tuple[list[float], dict]:
    """Six steps in float64, without dropout, with every kind of noise."""
    noise = TextOptions(layers=1, heads=2, vocabulary=200, max_length=16, dropout=0.0, delete=0.2, crop=0.3, shuffle=3,
                        mask=0.1, repeat=0.2)  # fmt: skip
    recipe = recipes.of(method, source="array", encoder="transformer", width=16, batch=16, steps=6, text=noise,
                        precision="64-true")  # fmt: skip
    data = build.open_like(documents(), None, recipe).train
    material = build.material(data, recipe)
    recipe = build.resolve(recipe, material)
    given, rows = build.input_of(data), []
    net = fresh(material, recipe, given=given)
    net.batch_norm = "whole"
    learn(material, recipe, net, Hooks(rows.append, False), fabric=fabric, given=given)
    return [row["loss"] for row in rows], net.state_dict()


def all_learnt(names: tuple[str, ...]) -> dict:
    fabric = launch(Engine(), "64-true")
    return {name: learnt(name, fabric) for name in names}


def test_two_processes_are_one():
    ones = all_learnt(METHODS)
    for rank, got in enumerate(torchrun(2, all_learnt, METHODS, seconds=200)):
        for name in METHODS:
            (one, held), (two, there) = ones[name], got[name]
            np.testing.assert_allclose(two, one, rtol=1e-6, err_msg=f"{name}, process {rank}")
            for key, value in held.items():
                close = torch.allclose(there[key].double(), value.double(), rtol=1e-5, atol=1e-6)
                assert close, f"{name}, process {rank}: {key}"
