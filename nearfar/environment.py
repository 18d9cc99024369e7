"""Versions, devices, and which extras are there."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from nearfar.errors import EXTRAS, one_line

_CORE = ("torch", "numpy", "pillow", "scikit-learn", "safetensors", "lightning-fabric", "tyro", "rich", "matplotlib")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit of the source this runs from, with ``+`` where files were changed; None in an installed copy."""
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        ask = lambda *a: subprocess.run(["git", "-C", str(folder), *a], capture_output=True, text=True, timeout=10)  # noqa: E731
        head = ask("rev-parse", "--short", "HEAD")
        return head.stdout.strip() + "+" * bool(ask("status", "--porcelain", "nearfar").stdout) or None
    except (OSError, subprocess.SubprocessError):
        return None


def describe_environment() -> dict[str, Any]:
    """What a result may depend on besides recipe, seed and data."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "nearfar": _version("nearfar") or "0.1.0",
        "commit": commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if gpu else f"cpu ({torch.backends.cpu.get_cpu_capability()})",
        "threads": torch.get_num_threads(),
        "packages": {name: _version(name) for name in _CORE},
    }


def extras() -> list[tuple[str, str, str, str]]:
    """(extra, module, state, what it gives); state is a version, ``missing``, or ``broken: why``."""
    rows = []
    for extra, (module, gives) in EXTRAS.items():
        try:
            importlib.import_module(module)
            state = _version(module) or "present"
        except ModuleNotFoundError as error:
            absent = (error.name or "").split(".")[0] == module
            state = "missing" if absent else f"broken: {one_line(error)}"
        except Exception as error:
            state = f"broken: {one_line(error)}"
        rows.append((extra, module, state, gives))
    return rows
