"""An encoder as an ONNX graph: tokens and a mask, or images, to features."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.encoders.recurrent import Recurrent
from nearfar.errors import UserError, one_line, require
from nearfar.exports.recurrent import with_states
from nearfar.run import Run

OPSET, OUTPUT = 18, "embedding"
_TOKENS = ("input_ids", "attention_mask")
_CLOSE = 1e-3  # of the largest feature: what the graph may differ by where it is tried


class _OfTexts(nn.Module):
    """input_ids, attention_mask (B, L) int64 -> (B, d)"""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder.padded(input_ids, attention_mask).float()


class _OfStates(nn.Module):
    """states (B, L, d) of tokens, mask (B, L) int64 -> (B, d)"""

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.pooling.padded(states, mask.bool()).float()


class _OfImages(nn.Module):
    """images (B, C, H, W) float32 in [0, 1] -> (B, d)"""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images).float()


def check() -> None:
    """One line where what writes a graph is missing."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, "onnx", "an export to ONNX")


def write(run: Run, path: Path) -> None:
    """One file, tried with onnxruntime on batches of other sizes than it was traced with.

    Texts: input_ids and attention_mask (B, L) int64, 1 to the text's end; images: images (B, C, H, W) float32 in
    [0, 1]. Output: embedding (B, d) float32. Raises ``UserError`` where it cannot be traced, or is not the same.
    """
    encoder = run.encoder.cpu()  # in evaluation mode, as runs give it
    with _quiet(), torch.no_grad():
        try:
            path.write_bytes(_graph(run, encoder).SerializeToString())
        except Exception as error:  # the exporter's own, of many kinds
            raise UserError(f"{run.folder} as ONNX cannot be had: {one_line(error)}; give OUT.safetensors") from None
        _try(run, encoder, path)


def _graph(run: Run, encoder: nn.Module) -> Any:
    """-> a ModelProto"""
    if not run.recipe.is_text:
        return _traced(_OfImages(encoder), {"images": _example(run, 3, 1)[0]}, {})
    longest = run.recipe.text.max_length
    ids, mask = _example(run, 3, min(5, longest))
    length = {1: torch.export.Dim("length", max=longest)}
    if not isinstance(encoder, Recurrent):
        return _traced(_OfTexts(encoder), dict(zip(_TOKENS, (ids, mask))), length)
    states = torch.zeros(*ids.shape, encoder.features)  # (B, L, d)
    return with_states(encoder, _traced(_OfStates(encoder.pooling), {"states": states, "mask": mask}, length), OPSET)


def _traced(made: nn.Module, given: dict[str, Tensor], length: dict[int, Any]) -> Any:
    """A module's graph for any number of rows, and of tokens where there is a length. -> a ModelProto"""
    dynamic = ({0: torch.export.Dim("batch")} | length,) * len(given)
    program = torch.onnx.export(
        made, tuple(given.values()), dynamo=True, opset_version=OPSET, verbose=False, input_names=tuple(given),
        output_names=(OUTPUT,), dynamic_shapes=dynamic,
    )  # fmt: skip
    _cleaned(program.model)
    return program.model_proto


def _example(run: Run, rows: int, length: int, seed: int = 0) -> tuple[Tensor, ...]:
    """A batch such as the encoder takes: random images, or tokens of texts of all lengths."""
    generator = torch.Generator().manual_seed(seed)
    if not run.recipe.is_text:
        h, w, c = run.input.shape
        return (torch.rand(rows, c, h, w, generator=generator),)
    ids = torch.randint(run.input.tokenizer.size, (rows, length), generator=generator)  # (B, L)
    ends = torch.randint(1, length + 1, (rows, 1), generator=generator)  # (B, 1)
    ends[0] = length
    return ids, (torch.arange(length) < ends).long()


def _try(run: Run, encoder: nn.Module, path: Path) -> None:
    """Held against the encoder itself, with a text alone, of one token, and texts as long as there may be."""
    runtime = require("onnxruntime", "onnx", "an export to ONNX")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    for rows, length in ((1, 1), (2, run.recipe.text.max_length)):
        given = _example(run, rows, length, seed=rows)
        z = session.run(None, {name: x.numpy() for name, x in zip(names, given)})[0]
        x = given[0].where(given[1].bool(), -1) if run.recipe.is_text else given[0]
        wanted = encoder(x).numpy()
        if not np.abs(z - wanted).max() <= _CLOSE * max(1.0, np.abs(wanted).max()):
            raise UserError(f"{run.folder} as ONNX does not give the same features: give OUT.safetensors")


def _cleaned(model: Any) -> None:
    """Take out which lines of which files each node came from, and give no value within the output's name."""
    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        for node in graph:
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
                if value.name == OUTPUT and value not in model.graph.outputs:
                    value.name = f"{OUTPUT}_of_tokens"
    model.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints, logs and warns of on its way."""
    was = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(was)
