"""ONNX files as encoders, on the CPU by onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar.errors import UserError, one_line, require
from nearfar.foreign.encoder import ForeignEncoder
from nearfar.foreign.preprocessing import Preprocessing
from nearfar.foreign.spec import Choices

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64,
          "tensor(uint8)": np.uint8}  # fmt: skip


@dataclass(frozen=True)
class _Port:
    """The image input of a graph; a dimension that may vary is 0."""

    name: str
    kind: type
    batch: int
    channels: int
    size: tuple[int, int]
    last: bool  # channels last: NHWC


def from_onnx(path: Path, choices: Choices) -> ForeignEncoder:
    """A graph with one image input (NCHW or NHWC); features are its first 2-D output, else its first 4-D one, pooled.

    It is given pixels in [0, 1], or as ``choices`` say; one whose input is uint8 is given bytes.
    """
    runtime = require("onnxruntime", "onnx", str(path))
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; it warns of what it does not know of the machine
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{path} is no ONNX model that onnxruntime can load: {one_line(error)}") from None
    port = _port(session, path)
    if port.kind is np.uint8 and (choices.mean or choices.std):
        raise UserError(f"{path} takes bytes: leave --mean and --std out")
    if choices.input_size and any(port.size) and (choices.input_size,) * 2 != port.size:
        raise UserError(f"{path} takes images of {port.size[0]}×{port.size[1]}: leave --input-size out")
    out = _output(session, path)
    size = port.size if all(port.size) else None
    plan = Preprocessing(port.channels, size, "cover", size).changed(choices, str(path))

    def encode(x: Tensor) -> np.ndarray:
        y = plan(x, str(path))  # (B, C, h, w)
        y = (y * 255).round() if port.kind is np.uint8 else y
        content = y.permute(0, 2, 3, 1) if port.last else y
        z = _run(session, port, out.name, np.ascontiguousarray(content.numpy(), port.kind), path)
        return z.mean((1, 2) if port.last else (2, 3)) if z.ndim == 4 else z

    layout = "NHWC" if port.last else "NCHW"
    said = f"{plan.describe()}, {layout}{', as bytes 0 to 255' if port.kind is np.uint8 else ''}"
    taken = f"output {out.name!r}{', mean over the map' if len(out.shape) == 4 else ''}"
    return ForeignEncoder(path.name, encode, {"weights": str(path), "preprocessing": said, "features": taken})


def _port(session: Any, path: Path) -> _Port:
    """The graph's one input, which must be of images."""
    inputs = session.get_inputs()
    names = ", ".join(f"{i.name} {i.shape}" for i in inputs)
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
        raise UserError(f"{path} takes {names} ({inputs[0].type if inputs else 'nothing'}): give a model with one "
                        "input of images, (N, C, H, W) or (N, H, W, C)")  # fmt: skip
    n, *sides = (d if isinstance(d, int) and d > 0 else 0 for d in inputs[0].shape)
    last = sides[0] not in (1, 3, 4) and sides[2] in (1, 3, 4)
    c, h, w = (sides[2], *sides[:2]) if last else sides
    return _Port(inputs[0].name, _TYPES[inputs[0].type], n, c, (h, w), last)


def _output(session: Any, path: Path) -> Any:
    outputs = session.get_outputs()
    for rank in (2, 4):
        for out in outputs:
            if len(out.shape or ()) == rank:
                return out
    names = ", ".join(f"{o.name} {o.shape}" for o in outputs)
    raise UserError(f"{path} gives {names}: an encoder gives (N, features), or maps (N, C, h, w)")


def _run(session: Any, port: _Port, output: str, x: np.ndarray, path: Path) -> np.ndarray:
    """The output for a batch of any size: one that the graph fixes is filled up with the last image again."""
    step, parts = port.batch or len(x), []
    for at in range(0, len(x), step):
        part = x[at : at + step]
        full = np.concatenate([part, np.repeat(part[-1:], step - len(part), 0)]) if len(part) < step else part
        try:
            parts.append(session.run([output], {port.name: full})[0][: len(part)])
        except Exception as error:
            size = "×".join(map(str, x.shape[1:]))
            raise UserError(f"{path} does not take images of {size}: {one_line(error)}") from None
    return np.concatenate(parts)
