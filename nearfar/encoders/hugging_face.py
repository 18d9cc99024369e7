"""Any of transformers' models of text as an encoder, by name or from a folder; safetensors alone, no code of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.encoders.packing import Packed, attention, pack
from nearfar.encoders.pooling import Pooling
from nearfar.errors import UserError, one_line, require

_SAFE = {"trust_remote_code": False}
RANDOM = "@random"


class HuggingFace(nn.Module):
    """``AutoModel`` of a name or folder, or with fresh weights of its configuration (``FOLDER@random``).

    Args:
        name: of the hub, or a folder with config.json and model.safetensors.
        vocabulary: the tokeniser's, which the model must have room for.
        dropout: put in the place of the configuration's own hidden and attention dropout.
        pooling: see :class:`Pooling`; left out: mean, of decoders the last token.

    Rows are sorted by length and go through the model in groups of about one length: little padding is computed.
    Of encoder-decoders the encoder is taken. (B, L), -1 beyond a text's end -> (B, features)
    """

    def __init__(
        self, name: str, vocabulary: int, *, dropout: float = 0.1, pooling: str = "", max_length: int = 64
    ) -> None:
        super().__init__()
        spec = f"transformers:{name}"
        transformers = require("transformers", "transformers", f"encoder {spec}")
        path = name.removesuffix(RANDOM)
        if path.startswith((".", "/", "~")) and not Path(path).is_dir():
            raise UserError(f"{spec}: no such folder")
        net = _loaded(transformers, path, name.endswith(RANDOM), dropout, spec)
        self.net = net.get_encoder() if getattr(net.config, "is_encoder_decoder", False) else net
        if getattr(self.net, "pooler", None) is not None:  # which nothing here is taught through
            self.net.pooler = None
        self.features = int(getattr(net.config, "hidden_size", 0) or net.config.d_model)
        self.embedding = self.net.get_input_embeddings()
        self.vocabulary = self.embedding.weight.shape[0]
        if vocabulary > self.vocabulary:
            raise UserError(f"{spec} has {self.vocabulary} tokens and the tokeniser {vocabulary}: leave "
                            "--text.tokenizer out to take its own")  # fmt: skip
        room = int(getattr(net.config, "max_position_embeddings", 0) or max_length)
        room -= 2 if getattr(net.config, "model_type", "") in _SHIFTED else 0
        if max_length > room:
            raise UserError(f"{spec} has {room} positions: pass --text.max-length {room} or less")
        causal = not getattr(net.config, "is_encoder_decoder", False) and _is_causal(transformers, net.config)
        self.pooling = Pooling(pooling or ("last" if causal else "mean"), self.features)
        self.max_length = max_length
        self._first = _first_position(net.config)
        if self._first is not None:
            transformers.AttentionInterface.register(_PACKED, _packed_attention)

    def _states(self, p: Packed) -> Tensor:
        """(T, d) of the packed tokens"""
        return self._grouped(p) if self._first is None else self._flat(p)

    def _flat(self, p: Packed) -> Tensor:
        """All texts as one row. -> (T, d)"""
        config, places = self.net.config, p.position + self._first  # (T,)
        was = config._attn_implementation
        config._attn_implementation = _PACKED  # for this call: whoever gives a mask wants the model's own
        try:
            return self.net(input_ids=p.ids[None], position_ids=places[None], packed=p).last_hidden_state[0]
        finally:
            config._attn_implementation = was

    def _grouped(self, p: Packed) -> Tensor:
        """A group of rows at a time. -> (T, d)"""
        out = []
        for g in p.groups:
            if g.places is None:
                ids = p.ids[g.start : g.stop].view(g.rows, g.longest)  # (b, l)
                out.append(self.net(input_ids=ids).last_hidden_state.flatten(0, 1))
                continue
            ids = p.ids.new_zeros(g.rows * g.longest).index_copy_(0, g.places, p.ids[g.start : g.stop])
            mask = g.mask[:, 0, 0]  # (b, l)
            h = self.net(input_ids=ids.view(g.rows, g.longest), attention_mask=mask.long()).last_hidden_state
            out.append(h.flatten(0, 1).index_select(0, g.places))
        return torch.cat(out)

    def tokens(self, x: Tensor) -> Tensor:
        """Each token's vector. -> (T, d)"""
        p = pack(x, self.max_length, self.vocabulary)
        return p.as_they_came(self._states(p))

    def forward(self, x: Tensor) -> Tensor:
        p = pack(x, self.max_length, self.vocabulary)
        return p.unsorted(self.pooling(self._states(p), p.row, p.lengths))

    def padded(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The same with padding. ids (B, L), mask (B, L) -> (B, d)"""
        h = self.net(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (B, L, d)
        return self.pooling.padded(h, mask.bool())


_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet")  # whose positions begin after the padding token's
_FLAT = ("bert", "electra", "roberta", "xlm-roberta", "camembert")  # in which a place counts by position_ids alone
_PACKED = "nearfar_packed"


def _first_position(config: Any) -> int | None:
    """The position_id of a text's first token where texts may go end to end; None where they may not."""
    kind = getattr(config, "model_type", "")
    absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
    if kind not in _FLAT or not absolute or getattr(config, "is_decoder", False):
        return None
    return config.pad_token_id + 1 if kind in _SHIFTED else 0


def _packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, *, packed: Packed, dropout: float = 0.0,
    **given: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention, each text to itself. 3 of (1, heads, T, d/heads) -> (1, T, heads, d/heads)"""
    heads, t = query.shape[1:3]
    qkv = torch.cat([query, key, value]).permute(2, 0, 1, 3).reshape(t, -1)  # (T, 3·d)
    return attention(qkv, packed, heads, dropout, False).view(1, t, heads, -1), None


def _loaded(transformers: Any, path: str, random: bool, dropout: float, spec: str) -> nn.Module:
    log = transformers.utils.logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(path, **_SAFE)
        for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout",
                    "dropout_rate", "resid_pdrop", "embd_pdrop", "attn_pdrop"):  # fmt: skip
            if isinstance(getattr(config, key, None), float):
                setattr(config, key, dropout)
        if random:
            return transformers.AutoModel.from_config(config, **_SAFE)
        return transformers.AutoModel.from_pretrained(path, config=config, use_safetensors=True, dtype=torch.float32,
                                                      **_SAFE)  # fmt: skip
    except Exception as error:  # transformers' own, of all kinds
        where = "" if Path(path).is_dir() else "; check the name and the connection, or give a folder"
        raise UserError(f"{spec} cannot be loaded: {one_line(error)}{where}") from None
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()


def _is_causal(transformers: Any, config: Any) -> bool:
    """Whether no token sees what follows: the library has its kind as a language model, and not as a masked one."""
    auto, kind = transformers.models.auto.modeling_auto, config.model_type
    alone = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return alone or bool(getattr(config, "is_decoder", False))
