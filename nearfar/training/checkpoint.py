"""Checkpoints: safetensors with a digest inside, written to the side and renamed. No pickle, ever."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nearfar.errors import UserError, one_line
from nearfar.training.state import plain


def write_bytes(path: Path, content: bytes | str) -> None:
    """Write a small file so that it is there whole or not at all."""
    side = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(side, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(side, path)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the names' order."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha.update(t.view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"")
    return sha.hexdigest()


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Write tensors and a JSON record of what they are; returns the digest."""
    held = plain(tensors)  # channels-last weights are not contiguous, and safetensors wants them so
    sha = digest(held)
    side = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(held, side, metadata={"sha256": sha, "about": json.dumps(dict(about))})
    with open(side, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(side, path)
    return sha


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint back; one clear line where it is absent, cut or changed."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the run has no checkpoint yet")
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): it is cut short or no checkpoint") from None
    if meta.get("sha256") != digest(tensors):
        raise UserError(f"{path} is damaged: its content does not match its digest; take another checkpoint")
    return tensors, json.loads(meta.get("about", "{}"))
