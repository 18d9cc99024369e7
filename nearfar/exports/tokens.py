"""A run's tokeniser as Hugging Face's libraries read it: tokenizer.json, and what transformers wants beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nearfar.errors import require
from nearfar.run import Run
from nearfar.text.options import TextOptions
from nearfar.text.tokenizer import Tokenizer
from nearfar.training.checkpoint import write_bytes

_PADS = ("[PAD]", "<pad>", "<|endoftext|>")
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def write(run: Run, path: Path) -> None:
    """tokenizer.json for the tokenizers library alone: it cuts texts, pads batches with token 0, and gives the mask.

    The tokens that a run does not look for in a text ("[SEP]") are none that are looked for here.
    """
    write_bytes(path, json.dumps(bare(run), ensure_ascii=False))


def bare(run: Run) -> dict[str, Any]:
    """What :func:`write` writes; without [CLS] and [SEP] where the encoder was trained without."""
    tokenizer, text = run.input.tokenizer, run.recipe.text
    held = _as_read(held_of(tokenizer), text)
    known = _vocabulary(held)
    held["added_tokens"] = [t for t in held["added_tokens"] if not (t["special"] and t["content"] in known)]
    held["truncation"] = {"direction": "Right", "max_length": text.max_length, "strategy": "LongestFirst",
                          "stride": 0}  # fmt: skip
    held["padding"] = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "[PAD]"}  # fmt: skip
    if run.recipe.encoder == "bag":
        held["post_processor"] = None
    return held


def held_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Its tokenizer.json, without what a run writes around it."""
    held = json.loads(tokenizer.to_json())
    return json.loads(held["tokenizer"]) if "specials" in held else held


def _as_read(held: dict[str, Any], text: TextOptions) -> dict[str, Any]:
    """Before all else white space becomes single spaces, as where texts are read, if the tokeniser minds it."""
    minds = (held["pre_tokenizer"] or {}).get("type") != "BertPreTokenizer"
    if minds and all(" ".join(p.split()) == p.rstrip(" ") for p in (text.prefix, text.second_prefix)):
        steps = [{"type": "Replace", "pattern": {"Regex": r"[\s\x00]+"}, "content": " "},
                 {"type": "Strip", "strip_left": True, "strip_right": True}]  # fmt: skip
        own = [held["normalizer"]] if held["normalizer"] else []
        held["normalizer"] = {"type": "Sequence", "normalizers": steps + own}
    return held


def _vocabulary(held: dict[str, Any]) -> set[str]:
    """The tokens of the model itself, as a table or as rows of (token, score)."""
    vocab = held["model"].get("vocab", ())
    return set(vocab) if isinstance(vocab, dict) else {row[0] for row in vocab}


def names(tokenizer: Tokenizer, held: dict[str, Any]) -> dict[str, str]:
    """``{"unk_token": "[UNK]", …}`` of the special tokens that there are."""
    lib = require("tokenizers", "text", "an export").Tokenizer.from_str(json.dumps(held))
    found = {f"{role}_token": lib.id_to_token(i) for role, i in tokenizer.specials._asdict().items() if i >= 0}
    return {role: name for role, name in found.items() if name is not None}


def padded(run: Run, room: bool) -> tuple[dict[str, Any], dict[str, str], int]:
    """tokenizer.json, its special tokens' names with a padding token among them, and that token's id.

    Where there is none it is added beyond the vocabulary if the model makes ``room`` for it; else another stands in,
    which is as good: padding is masked.
    """
    tokenizer, held = run.input.tokenizer, _as_read(held_of(run.input.tokenizer), run.recipe.text)
    lib, called = require("tokenizers", "text", "an export").Tokenizer, names(tokenizer, held)
    pad = next((name for name in _PADS if lib.from_str(json.dumps(held)).token_to_id(name) is not None), None)
    if pad is None and room:
        pad = _PADS[0]
        held["added_tokens"].append({"id": tokenizer.size, "content": pad, **_FLAGS})
    pad = pad or called.get("unk_token") or called.get("sep_token") or lib.from_str(json.dumps(held)).id_to_token(0)
    held["padding"] = held["truncation"] = None
    return held, called | {"pad_token": pad}, lib.from_str(json.dumps(held)).token_to_id(pad)


def config(called: dict[str, str], max_length: int) -> dict[str, Any]:
    """tokenizer_config.json: a text that spells "[SEP]" does not end there."""
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, "padding_side": "right",
            "truncation_side": "right", "split_special_tokens": True, "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"], **called}  # fmt: skip
