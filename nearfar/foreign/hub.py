"""transformers' models of images, by name or from a folder; safetensors alone, and never code from the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.errors import UserError, one_line, require
from nearfar.foreign.encoder import ForeignEncoder, device
from nearfar.foreign.preprocessing import with_channels
from nearfar.foreign.spec import Choices
from nearfar.foreign.vision import RANDOM, out_of_reach

_SAFE = {"trust_remote_code": False}
_CLASS_TOKENS = ("cls_token", "class_embedding")
_SAID = ("size", "crop_size", "crop_pct", "resample", "rescale_factor", "image_mean", "image_std")


def from_transformers(name: str, choices: Choices) -> ForeignEncoder:
    """``AutoModel`` behind its ``AutoImageProcessor``.

    Features are the first of: an image-and-text model's image features; ``pooler_output``, unless the file holds no
    weights for the pooler; the class token where there is one; the mean of tokens, or over the map.
    """
    spec = f"transformers:{name}"
    transformers = require("transformers", "transformers", spec)
    require("torchvision", "transformers", f"the image processor of {spec}")
    if choices.mean or choices.std or choices.input_size:
        raise UserError(f"{spec} brings its own image processor: leave --mean, --std and --input-size out")
    random, path = name.endswith(f"@{RANDOM}"), name.removesuffix(f"@{RANDOM}")
    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise UserError(f"{spec}: no such folder")
    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(path, **_SAFE)
            if hasattr(config, "mask_ratio"):  # a masked autoencoder's encoder would see a quarter of the image
                config.mask_ratio = 0.0
            processor = transformers.AutoImageProcessor.from_pretrained(path, **_SAFE)
            net, missing = _random(transformers, config) if random else _trained(transformers, path, config)
        except UserError:
            raise
        except Exception as error:
            if Path(path).is_dir():
                raise UserError(f"{spec} cannot be loaded: {one_line(error)}") from None
            raise out_of_reach(f"transformers:{path}", error, "HF_HOME") from None
    where, net = device(), net.eval().to(device())
    channels = getattr(getattr(config, "vision_config", config), "num_channels", 3)

    @torch.no_grad()
    def output(x: Tensor) -> Any:
        x = with_channels(x, channels, spec)
        known = {} if x.dtype == torch.uint8 else {"do_rescale": False}
        try:
            given = processor(images=list(x), return_tensors="pt", input_data_format="channels_first", **known)
            pixels = given["pixel_values"].to(where)
            return net.get_image_features(pixel_values=pixels) if _with_text(net) else net(pixel_values=pixels)
        except Exception as error:
            raise UserError(f"{spec} does not take these images: {one_line(error)}") from None

    take, said = _features(net, output(torch.zeros(1, channels, 64, 64, dtype=torch.uint8)), missing)
    about = {"weights": RANDOM if random else path, "preprocessing": _describe(processor), "features": said}
    short = f"transformers:{Path(path).name}{f'@{RANDOM}' if random else ''}"
    return ForeignEncoder(short, lambda x: take(output(x)), about)


def _trained(transformers: Any, path: str, config: Any) -> tuple[nn.Module, set[str]]:
    """The model, and which of its weights were not in the file: the pooler's may lack, and what is for masking."""
    net, info = transformers.AutoModel.from_pretrained(
        path, config=config, use_safetensors=True, output_loading_info=True, **_SAFE
    )
    lacking = {key for key in info["missing_keys"] if "pooler" not in key and "mask_token" not in key}
    if lacking:
        raise UserError(f"transformers:{path}: {len(lacking)} of its weights are missing, first {min(lacking)}")
    return net, set(info["missing_keys"])


def _random(transformers: Any, config: Any) -> tuple[nn.Module, set[str]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = transformers.AutoModel.from_config(config, **_SAFE)
    return net, {key for key, _ in net.named_parameters() if "pooler" in key}


def _with_text(net: nn.Module) -> bool:
    return hasattr(net, "get_image_features")


def _features(net: nn.Module, seen: Any, missing: set[str]) -> tuple[Callable[[Any], Tensor], str]:
    """How features are taken from an output like the one seen, and what they are called."""
    if isinstance(seen, Tensor):
        return lambda out: out, "image features in the space shared with text"
    untrained = any("pooler" in key for key in missing)
    if getattr(seen, "pooler_output", None) is not None and not untrained:
        said = "image features in the space shared with text" if _with_text(net) else "pooler_output"
        return lambda out: out.pooler_output.flatten(1), said  # (B, d) or (B, d, 1, 1)
    hidden = getattr(seen, "last_hidden_state", None)
    if hidden is None or hidden.ndim not in (3, 4):
        raise UserError(f"{type(net).__name__} gives neither pooler_output nor last_hidden_state: it is no encoder")
    if hidden.ndim == 4:
        return lambda out: out.last_hidden_state.mean((2, 3)), "mean of last_hidden_state over the map"
    if any(part in key for key, _ in net.named_parameters() for part in _CLASS_TOKENS):
        return lambda out: out.last_hidden_state[:, 0], "class token of last_hidden_state"
    return lambda out: out.last_hidden_state.mean(1), "mean of last_hidden_state over tokens"


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """What it would say of missing weights is said in the protocol."""
    log = transformers.utils.logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()


def _describe(processor: Any) -> str:
    held = {key: getattr(processor, key, None) for key in _SAID}
    parts = [f"{key} {dict(v) if hasattr(v, 'items') else v}" for key, v in held.items() if v is not None]
    return f"{type(processor).__name__}: {', '.join(parts)}"
