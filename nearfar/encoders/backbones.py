"""Backbones of torchvision and timm by name, cut to features, with a stem for small images."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from nearfar.errors import UserError, nearest, one_line, require

_HEADS = ("fc", "classifier", "heads", "head")


class _Pooled(nn.Module):
    """Any module that gives (B, features); ``features`` is found by one pass over a blank image."""

    def __init__(self, net: nn.Module, shape: tuple[int, int, int], name: str) -> None:
        super().__init__()
        self.net = net
        was = net.training
        try:
            with torch.no_grad():
                out = net.eval()(torch.zeros(1, shape[2], *shape[:2]))
        except Exception as error:
            raise UserError(
                f"{name} does not take images of {shape[0]}×{shape[1]}×{shape[2]}: {one_line(error)}"
            ) from None
        net.train(was)
        if out.ndim != 2:
            raise UserError(f"{name} gives {tuple(out.shape)}, not one feature vector an image")
        self.features = out.shape[1]

    def pooled(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return y if y.dtype == torch.float64 else y.float()

    def intermediates(self, x: Tensor) -> dict[str, Tensor]:
        """The maps on the way, where the library gives them (timm): (B, C, H, W) -> (B, c, h, w) by name."""
        if not hasattr(self.net, "forward_intermediates"):
            raise UserError("this encoder gives no feature maps: use cnn, resnet10, resnet18, a ResNet of torchvision "
                            "or a model of timm")  # fmt: skip
        return {f"map{i + 1}": m for i, m in enumerate(self.net.forward_intermediates(x, intermediates_only=True))}


class _Staged(nn.Module):
    """A torchvision ResNet without its head, whose stages' maps can be had: (B, C, H, W) -> maps by name."""

    def __init__(self, net: nn.Module, features: int) -> None:
        super().__init__()
        self.net, self.features = net, features

    def maps(self, x: Tensor) -> dict[str, Tensor]:
        net, out = self.net, {}
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for i, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4)):
            x = out[f"stage{i + 1}"] = stage(x)
        return out


def _replace_first_conv(net: nn.Module, channels: int, small: bool) -> None:
    """Make the first convolution take ``channels``; for small images also 3×3 without stride (He's CIFAR stem)."""
    for name, part in net.named_modules():
        if isinstance(part, nn.Conv2d):
            first, path = part, name
            break
    else:
        return
    shrink = small and first.kernel_size[0] == 7  # the ImageNet stem of the ResNet family
    if first.in_channels == channels and not shrink:
        return
    kernel, stride, padding = (3, 1, 1) if shrink else (first.kernel_size, first.stride, first.padding)
    fresh = nn.Conv2d(channels, first.out_channels, kernel, stride, padding, bias=first.bias is not None)
    parent, _, leaf = path.rpartition(".")
    setattr(net.get_submodule(parent), leaf, fresh)


def _drop_stem_pool(net: nn.Module) -> None:
    if isinstance(getattr(net, "maxpool", None), nn.MaxPool2d):
        net.maxpool = nn.Identity()


def from_torchvision(name: str, shape: tuple[int, int, int], *, small: bool) -> nn.Module:
    """A torchvision classification model without its head, fresh weights."""
    torchvision = require("torchvision", "vision", f"encoder torchvision:{name}")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UserError(f"unknown torchvision encoder {name!r}{nearest(name, known)}")
    extra = {"image_size": shape[0]} if name.startswith("vit_") else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initialisers that will change, in libraries
            net = torchvision.models.get_model(name, weights=None, **extra)
    except Exception as error:
        raise UserError(f"torchvision:{name} cannot be built for {shape[0]}×{shape[1]}: {one_line(error)}") from None
    for head in _HEADS:
        if hasattr(net, head):
            setattr(net, head, nn.Flatten(1))
            break
    _replace_first_conv(net, shape[2], small)
    if small:
        _drop_stem_pool(net)
    pooled = _Pooled(net, shape, f"torchvision:{name}")
    return _Staged(net, pooled.features) if isinstance(net, torchvision.models.ResNet) else pooled


def from_timm(name: str, shape: tuple[int, int, int], *, small: bool) -> nn.Module:
    """A timm model with ``num_classes=0``, fresh weights."""
    timm = require("timm", "timm", f"encoder timm:{name}")
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise UserError(f"unknown timm encoder {name!r}{nearest(name, known)}")
    sized = {"img_size": shape[:2]}
    # transformers take a size, and most of them others too, which small crops need; convolutional models take any
    for extra in (sized | {"dynamic_img_size": True}, sized, {}):
        try:
            net = timm.create_model(name, pretrained=False, num_classes=0, in_chans=shape[2], **extra)
            break
        except TypeError as error:
            if not extra:
                raise UserError(f"timm:{name} cannot be built: {one_line(error)}") from None
        except Exception as error:
            raise UserError(f"timm:{name} cannot be built for {shape[0]}×{shape[1]}: {one_line(error)}") from None
    if small:
        _replace_first_conv(net, shape[2], small)
        _drop_stem_pool(net)
    return _Pooled(net, shape, f"timm:{name}")
