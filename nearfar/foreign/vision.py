"""torchvision's and timm's models without their last layer, with their own weights and preprocessing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nearfar.errors import UserError, nearest, one_line, require
from nearfar.foreign.encoder import ForeignEncoder, device
from nearfar.foreign.preprocessing import Preprocessing
from nearfar.foreign.spec import Choices

_HEADS = ("fc", "classifier", "heads", "head")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
RANDOM = "random"


def from_torchvision(name: str, weights: str, choices: Choices) -> ForeignEncoder:
    """torchvision's classification model; features are what its last linear layer takes.

    ``weights``: "" for the default ones, the name of others (IMAGENET1K_V1), "random", or a .safetensors file.
    """
    spec = f"torchvision:{name}"
    torchvision = require("torchvision", "vision", spec)
    models = torchvision.models
    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"unknown torchvision model {name!r}{nearest(name, known)}")
    kinds = models.get_model_weights(name)
    local = _is_file(weights)
    if weights and weights != RANDOM and not local and weights not in kinds.__members__:
        raise UserError(f"unknown weights {weights!r} of {spec}{nearest(weights, kinds.__members__)}")
    entry = kinds[weights] if weights in kinds.__members__ else kinds.DEFAULT
    net = _built(lambda: models.get_model(name, weights=None), spec)
    if weights != RANDOM and hasattr(net, "transform_input"):
        net.transform_input = True  # GoogLeNet and Inception, whose weights want pixels in [-1, 1]
    if weights != RANDOM and not local:
        try:
            state = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except Exception as error:
            raise out_of_reach(spec, error, "TORCH_HOME") from None
        net.load_state_dict(state)
    head = _cut(net)
    if local:
        _fill(net, Path(weights), (head,), spec)
    did = entry.transforms()
    plan = Preprocessing(3, (did.resize_size[0],) * 2, "cover", (did.crop_size[0],) * 2,
                         _interpolation(did.interpolation.value), tuple(did.mean), tuple(did.std))  # fmt: skip
    said = weights if local or weights == RANDOM else str(entry)
    return _encoder(spec, weights, said, net, plan.changed(choices, spec))


def from_timm(name: str, weights: str, choices: Choices) -> ForeignEncoder:
    """timm's model with ``num_classes=0``; ``weights``: "" for its own, "random", or a .safetensors file."""
    spec = f"timm:{name}"
    timm = require("timm", "timm", spec)
    known = timm.list_models()
    if ":" not in name and name.split(".")[0] not in known:  # hf-hub:NAME and local-dir:FOLDER are timm's own
        raise UserError(f"unknown timm model {name!r}{nearest(name.split('.')[0], known)}")
    if weights and weights != RANDOM and not _is_file(weights):
        raise UserError(f"{spec}@{weights}: give @random or @FILE.safetensors; other weights of timm's are in the "
                        "name (resnet18.a1_in1k)")  # fmt: skip
    sized = {"img_size": choices.input_size} if choices.input_size else {}
    make = lambda pretrained: _timm(timm, name, pretrained, sized)  # noqa: E731
    if weights:
        net = _built(lambda: make(False), spec)
    else:
        if ":" not in name and not timm.is_model_pretrained(name):
            raise UserError(f"{spec}: timm has no weights of it: give @random or @FILE.safetensors")
        try:
            net = make(True)
        except Exception as error:
            raise out_of_reach(spec, error, "HF_HOME") from None
    cfg = timm.data.resolve_model_data_config(net)
    if _is_file(weights):
        heads = net.pretrained_cfg.get("classifier") or ()
        _fill(net, Path(weights), (heads,) if isinstance(heads, str) else tuple(heads), spec)
    said = weights or str(net.pretrained_cfg.get("tag") or "timm's own")
    return _encoder(spec, weights, said, net, _of_timm(cfg).changed(choices, spec))


def _encoder(spec: str, weights: str, said: str, net: nn.Module, plan: Preprocessing) -> ForeignEncoder:
    where, net = device(), net.eval().to(device())

    @torch.no_grad()
    def encode(x: Tensor) -> Tensor:
        x = plan(x, spec).to(where)
        try:
            return net(x)
        except Exception as error:
            size = "×".join(map(str, x.shape[2:]))
            raise UserError(f"{spec} does not take images of {size}: {one_line(error)}") from None

    name = f"{spec}@{Path(weights).stem}" if weights else spec
    about = {"weights": said, "preprocessing": plan.describe(), "features": "what the last layer takes"}
    return ForeignEncoder(name, encode, about)


def _timm(timm: Any, name: str, pretrained: bool, sized: Mapping[str, int]) -> nn.Module:
    """Transformers must be told of another size, convolutional models take any."""
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **sized)
    except TypeError:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)


def _of_timm(cfg: Mapping[str, Any]) -> Preprocessing:
    """timm's evaluation transform, as its ``transforms_imagenet_eval`` reads the configuration."""
    channels, *size = cfg["input_size"]
    scaled = tuple(math.floor(side / cfg["crop_pct"]) for side in size)
    fit = {"squash": "squash", "border": "inside"}.get(cfg["crop_mode"], "cover")
    return Preprocessing(channels, scaled, fit, tuple(size), _interpolation(cfg["interpolation"]),
                         tuple(cfg["mean"]), tuple(cfg["std"]))  # fmt: skip


def _interpolation(name: str) -> str:
    return name if name in _INTERPOLATIONS else "bicubic"  # lanczos and the like are Pillow's alone


def _built(make: Any, spec: str) -> nn.Module:
    """A model with fresh weights, the same each time."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initialisers that will change, in libraries
            torch.manual_seed(0)
            return make()
    except Exception as error:
        raise UserError(f"{spec} cannot be built: {one_line(error)}") from None


def _cut(net: nn.Module) -> str:
    """Take the last linear layer away (of a head of convolutions, all of it); returns the head's name."""
    head = next(h for h in _HEADS if isinstance(getattr(net, h, None), nn.Module))
    linear = [path for path, part in net.named_modules() if isinstance(part, nn.Linear) and path.startswith(head)]
    if not linear:
        setattr(net, head, nn.AdaptiveAvgPool2d(1))
        return head
    parent, _, leaf = linear[-1].rpartition(".")
    setattr(net.get_submodule(parent), leaf, nn.Identity())
    return linear[-1]


def _is_file(weights: str) -> bool:
    return weights.endswith(".safetensors") or Path(weights).suffix in (".pth", ".pt", ".bin") or "/" in weights


def _fill(net: nn.Module, path: Path, heads: tuple[str, ...], spec: str) -> None:
    """Take weights from a file; all must be there, and nothing more than the head's."""
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are read from .safetensors alone: write them with "
                        "safetensors.torch.save_file(model.state_dict(), FILE)")  # fmt: skip
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights")
    try:
        held = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): it is cut short or no .safetensors") from None
    held = {name: t for name, t in held.items() if not name.startswith(tuple(f"{h}." for h in heads))}
    wanted = net.state_dict()
    missing, more = sorted(wanted.keys() - held.keys()), sorted(held.keys() - wanted.keys())
    if missing or more:
        raise UserError(f"{path} does not fit {spec}: {len(missing)} weights missing, {len(more)} too many"
                        f" (first {(missing + more)[0]})")  # fmt: skip
    for name, t in held.items():
        if t.shape != wanted[name].shape:
            raise UserError(f"{path} does not fit {spec}: {name} is {tuple(t.shape)}, not {tuple(wanted[name].shape)}")
    net.load_state_dict(held)


def out_of_reach(spec: str, error: Exception, home: str) -> UserError:
    """The line for weights that are neither here nor can be fetched."""
    fix = f"{spec}@FILE.safetensors, or {spec}@random for fresh ones"
    fix = "transformers:FOLDER" if spec.startswith("transformers:") else fix
    return UserError(f"{spec}: its weights are not here and cannot be fetched ({one_line(error)}): set {home} to a "
                     f"cache that holds them, or give {fix}")  # fmt: skip
