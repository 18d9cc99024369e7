"""Our transformer's weights under the names of transformers' ``BertModel``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nearfar.encoders.transformer import Transformer

_PARTS = {"out": "attention.output.dense", "norm1": "attention.output.LayerNorm", "up": "intermediate.dense",
          "down": "output.dense", "norm2": "output.LayerNorm"}  # fmt: skip


def bert_config(encoder: Transformer, vocabulary: int = 0) -> dict[str, Any]:
    """The values of a ``BertConfig``, with room for ``vocabulary`` tokens; of a causal encoder those of a decoder."""
    return {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": max(encoder.vocabulary, vocabulary),
            "hidden_size": encoder.features, "num_hidden_layers": len(encoder.blocks),
            "num_attention_heads": encoder.blocks[0].heads,
            "intermediate_size": 4 * encoder.features, "hidden_act": "gelu",
            "hidden_dropout_prob": encoder.dropout, "attention_probs_dropout_prob": encoder.dropout,
            "max_position_embeddings": encoder.max_length, "type_vocab_size": 2, "layer_norm_eps": encoder.norm.eps,
            "initializer_range": 0.02, "is_decoder": encoder.causal, "pad_token_id": None}  # fmt: skip


def to_bert_state_dict(encoder: Transformer, vocabulary: int = 0) -> dict[str, Tensor]:
    """Copies of the weights under BERT's names; tokens beyond the encoder's own, up to ``vocabulary``, are zeros.

    BERT has parts that ours has not: kinds of tokens, which are zeros here, and a pooler, which is the identity.
    """
    held, width = encoder.state_dict(), encoder.features
    embedding = held["embedding.weight"]
    more = embedding.new_zeros(max(0, vocabulary - len(embedding)), width)
    out = {"embeddings.word_embeddings.weight": torch.cat([embedding, more]),
           "embeddings.position_embeddings.weight": held["position.weight"],
           "embeddings.token_type_embeddings.weight": embedding.new_zeros(2, width),
           "pooler.dense.weight": torch.eye(width, dtype=embedding.dtype, device=embedding.device),
           "pooler.dense.bias": embedding.new_zeros(width)}  # fmt: skip
    for kind in ("weight", "bias"):
        out[f"embeddings.LayerNorm.{kind}"] = held[f"norm.{kind}"]
        for i in range(len(encoder.blocks)):
            theirs, ours = f"encoder.layer.{i}", f"blocks.{i}"
            for name, part in zip(("query", "key", "value"), held[f"{ours}.qkv.{kind}"].chunk(3)):
                out[f"{theirs}.attention.self.{name}.{kind}"] = part
            out |= {f"{theirs}.{name}.{kind}": held[f"{ours}.{part}.{kind}"] for part, name in _PARTS.items()}
    return {name: t.detach().clone() for name, t in out.items()}
