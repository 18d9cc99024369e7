"""A folder that SentenceTransformer(path) loads, and AutoModel and AutoTokenizer too; written without either.

The layout is that of sentence-transformers 2 to 6: modules.json names the modules, each with a folder of its own.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from nearfar.encoders.bag import Bag
from nearfar.encoders.bert_names import bert_config, to_bert_state_dict
from nearfar.encoders.transformer import Transformer
from nearfar.errors import UserError, require
from nearfar.exports import tokens
from nearfar.exports.card import card
from nearfar.exports.weights import pooling_of
from nearfar.run import Run

MARK = "modules.json"
_POOLINGS = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens", "last": "lasttoken"}


def check(run: Run) -> None:
    """One line where sentence-transformers has nothing that is the same."""
    recipe, encoder = run.recipe, run.encoder
    what = f"{run.folder} as a sentence-transformers folder"
    if not recipe.is_text:
        raise UserError(f"{what}: it is of images; give OUT.onnx or OUT.safetensors")
    if isinstance(encoder, Bag):
        return
    if not isinstance(encoder, Transformer) and not hasattr(encoder, "net"):
        raise UserError(f"{what}: it has no {recipe.encoder.upper()} that is the same; give OUT.onnx")
    if getattr(encoder, "causal", False):
        raise UserError(f"{what}: BERT, which it would be there, is not causal; give OUT.onnx")
    if pooling_of(run) not in _POOLINGS:
        raise UserError(f"{what}: it has no {pooling_of(run)} pooling; give OUT.onnx")
    if hasattr(encoder, "net") and getattr(encoder.net.config, "is_encoder_decoder", False):
        raise UserError(f"{what}: of an encoder-decoder the encoder alone was trained; give OUT.onnx")


def write(run: Run, folder: Path) -> None:
    """All files of the folder, of a run that :func:`check` lets pass."""
    folder.mkdir()
    _json(folder / "config_sentence_transformers.json", _settings(run))
    (folder / "README.md").write_text(card(run), encoding="utf-8")
    if isinstance(run.encoder, Bag):
        _json(folder / MARK, _modules("StaticEmbedding"))
        _json(folder / "tokenizer.json", tokens.bare(run))
        save_file({"embedding.weight": run.encoder.embedding.weight.detach().float().cpu().contiguous()},
                  folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
        return
    _json(folder / MARK, _modules("Transformer", "Pooling"))
    _json(folder / "sentence_bert_config.json", {"max_seq_length": run.recipe.text.max_length, "do_lower_case": False})
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{theirs}": ours == pooling_of(run) for ours, theirs in _POOLINGS.items()}
    _json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": run.encoder.features, **modes})
    _model(run, folder)


def _model(run: Run, folder: Path) -> None:
    """config.json and model.safetensors of transformers, and the tokeniser's files."""
    ours = isinstance(run.encoder, Transformer)
    held, called, pad = tokens.padded(run, room=ours)
    _json(folder / "tokenizer.json", held)
    _json(folder / "tokenizer_config.json", tokens.config(called, run.recipe.text.max_length))
    if ours:
        _json(folder / "config.json", bert_config(run.encoder, pad + 1) | {"pad_token_id": pad})
        save_file(to_bert_state_dict(run.encoder, pad + 1), folder / "model.safetensors", metadata={"format": "pt"})
        return
    net = copy.deepcopy(run.encoder.net)
    net.config._name_or_path = ""  # the folder it was loaded from is nobody's business
    transformers = require("transformers", "transformers", "an export")
    log = transformers.utils.logging
    bar = log.is_progress_bar_enabled()
    log.disable_progress_bar()
    try:
        net.save_pretrained(folder)
        _check_tokens(run, transformers.AutoTokenizer.from_pretrained(str(folder)))
    finally:
        if bar:
            log.enable_progress_bar()


def _check_tokens(run: Run, theirs: Any) -> None:
    """One line where transformers has a tokeniser of its own for an architecture, whatever tokenizer.json says."""
    most, kind = run.recipe.text.max_length, run.encoder.net.config.model_type
    for text in ("A boat, 3 sails and a harbour.", "the ünïcode"):
        ours = run.input.tokenizer.encode([text], most)[0].tolist()
        if theirs(text, truncation=True, max_length=most)["input_ids"] != ours:
            raise UserError(f"{run.folder} as a sentence-transformers folder: transformers gives a {kind} model a "
                            "tokeniser of its own; give OUT.onnx")  # fmt: skip


def _modules(*names: str) -> list[dict[str, Any]]:
    return [{"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "",
             "type": f"sentence_transformers.models.{name}"} for i, name in enumerate(names)]  # fmt: skip


def _settings(run: Run) -> dict[str, Any]:
    """Prompts: the first column's prefix as ``query``, which encode takes by default, the others' as ``document``."""
    text = run.recipe.text
    return {"__version__": {}, "model_type": "SentenceTransformer", "similarity_fn_name": "cosine",
            "prompts": {"query": text.prefix, "document": text.second_prefix},
            "default_prompt_name": "query" if text.prefix else None}  # fmt: skip


def _json(path: Path, held: Any) -> None:
    path.write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
