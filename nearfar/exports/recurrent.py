"""A GRU or LSTM as ONNX: its own operators, which know how long each text is, put before the pooling's graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nearfar.encoders.recurrent import Recurrent
from nearfar.errors import require

# PyTorch's gates in ONNX's order: z, r, h of r, z, n; i, o, f, c of i, f, g, o
_ORDERS = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}


def with_states(encoder: Recurrent, pooling: Any, opset: int) -> Any:
    """Put the graph from input_ids and attention_mask to states before one from states and mask. -> a ModelProto"""
    onnx = require("onnx", "onnx", "an export to ONNX")
    h, ints, floats = onnx.helper, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    inputs = [h.make_tensor_value_info(name, ints, ["batch", "length"]) for name in ("input_ids", "attention_mask")]
    outputs = [h.make_tensor_value_info("states_of_tokens", floats, ["batch", "length", encoder.features]),
               h.make_tensor_value_info("mask_of_tokens", ints, ["batch", "length"])]  # fmt: skip
    nodes, weights = _nodes(encoder, h)
    held = [onnx.numpy_helper.from_array(x.detach().cpu().numpy(), name) for name, x in weights.items()]
    model = h.make_model(h.make_graph(nodes, "states", inputs, outputs, held), ir_version=pooling.ir_version,
                         opset_imports=[h.make_opsetid("", opset)])  # fmt: skip
    return onnx.compose.merge_models(model, pooling, [("states_of_tokens", "states"), ("mask_of_tokens", "mask")])


def _nodes(encoder: Recurrent, h: Any) -> tuple[list[Any], dict[str, Tensor]]:
    """Embedding, layers upon each other; the operators run over (L, B, d) and stop at each text's length."""
    cell = encoder.cell
    kind, ways = cell.mode, 2 if cell.bidirectional else 1
    weights = {"E": encoder.embedding.weight, "across": torch.tensor([1]), "joined": torch.tensor([0, 0, -1])}
    nodes = [
        h.make_node("ReduceSum", ["attention_mask", "across"], ["sums"], keepdims=0),
        h.make_node("Cast", ["sums"], ["lengths"], to=6),  # int32
        h.make_node("Identity", ["attention_mask"], ["mask_of_tokens"]),
        h.make_node("Gather", ["E", "input_ids"], ["embedded"]),  # (B, L, d)
        h.make_node("Transpose", ["embedded"], ["h0"], perm=[1, 0, 2]),  # (L, B, d)
    ]
    own = {"linear_before_reset": 1} if kind == "GRU" else {}
    for i in range(cell.num_layers):
        weights |= _layer(cell, i, ways)
        nodes += [
            h.make_node(kind, [f"h{i}", f"W{i}", f"R{i}", f"B{i}", "lengths"], [f"y{i}"], hidden_size=cell.hidden_size,
                        direction="bidirectional" if ways == 2 else "forward", **own),  # (L, ways, B, H)
            h.make_node("Transpose", [f"y{i}"], [f"t{i}"], perm=[0, 2, 1, 3]),  # (L, B, ways, H)
            h.make_node("Reshape", [f"t{i}", "joined"], [f"h{i + 1}"]),  # (L, B, d)
        ]  # fmt: skip
    return [*nodes, h.make_node("Transpose", [f"h{cell.num_layers}"], ["states_of_tokens"], perm=[1, 0, 2])], weights


def _layer(cell: torch.nn.RNNBase, i: int, ways: int) -> dict[str, Tensor]:
    """A layer's weights as ONNX orders them: W (ways, gates·H, in), R (ways, gates·H, H), B (ways, 2·gates·H)"""
    order = _ORDERS[cell.mode]

    def turned(what: str, way: int) -> Tensor:
        parts = getattr(cell, f"{what}_l{i}{'_reverse' * way}").chunk(len(order))  # gates of (H, …)
        return torch.cat([parts[gate] for gate in order])

    stacked = {name: torch.stack([turned(what, way) for way in range(ways)])
               for name, what in (("W", "weight_ih"), ("R", "weight_hh"))}  # fmt: skip
    biases = [torch.cat([turned("bias_ih", way), turned("bias_hh", way)]) for way in range(ways)]
    return {f"W{i}": stacked["W"], f"R{i}": stacked["R"], f"B{i}": torch.stack(biases)}
