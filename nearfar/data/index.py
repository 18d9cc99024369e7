"""What is known of a folder's files from earlier openings, so that the next one need not open them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nearfar.data.pixels import Damaged
from nearfar.data.workers import DIGEST

_RECENT = 10**8  # nanoseconds: a change within them of the last one may leave the same stamp
_CHANGED = 2 if os.name == "posix" else 1  # the stamp that nobody can set: elsewhere it is when a file was made
_RULES = 4  # rules whose checks are remembered


@dataclass
class Index:
    """A row a file; -1 as a width says that the header has not been looked at, 0 that it cannot be read."""

    names: Sequence[str]
    stamps: np.ndarray  # (F, 3) int64: bytes, when its content and when anything of it changed; -1: not to be trusted
    heads: np.ndarray  # (F, 3) int32: width, height, whether it is grey
    digests: np.ndarray  # (F, DIGEST) uint8 of the content; zeros: not known
    reasons: dict[int, str] = field(default_factory=dict)  # why a header cannot be read
    checked: dict[str, np.ndarray] = field(default_factory=dict)  # rule -> (F,) bool: has been decoded by it
    failed: dict[str, dict[int, str]] = field(default_factory=dict)  # rule -> why a file cannot be decoded
    stores: dict[str, str] = field(default_factory=dict)  # rule -> the file of its pixels

    @property
    def unseen(self) -> np.ndarray:
        """Files whose header has not been looked at. (n,)"""
        return np.flatnonzero(self.heads[:, 0] < 0)

    def undigested(self, files: np.ndarray) -> np.ndarray:
        """Those of ``files`` whose content's digest is not known. (n,)"""
        return files[~self.digests[files].any(1)]

    def distrust(self, i: int) -> None:
        """Look at a file anew next time: it failed for a reason that may pass."""
        self.stamps[i], self.digests[i] = -1, 0


def survey(folder: Path, names: Sequence[str]) -> Index:
    """Every file's stamp, and nothing else yet."""
    stamps = np.full((len(names), 3), -1, np.int64)
    root = os.path.join(folder, "")
    for i, name in enumerate(names):
        with suppress(OSError):  # whoever opens it will say why
            about = os.stat(root + name)
            stamps[i] = about.st_size, about.st_mtime_ns, about.st_ctime_ns
    stamps[stamps[:, _CHANGED] > time.time_ns() - _RECENT] = -1
    n = len(names)
    return Index(names, stamps, np.full((n, 3), -1, np.int32), np.zeros((n, DIGEST), np.uint8))


def carry(old: Index, new: Index) -> None:
    """Take over what was known of files whose stamps are as they were."""
    if old.names == new.names:
        mine = theirs = np.arange(len(new.names))
    else:
        places = {name: i for i, name in enumerate(old.names)}
        pairs = [(i, places[name]) for i, name in enumerate(new.names) if name in places]
        mine, theirs = np.array(pairs, np.int64).reshape(-1, 2).T
    same = (new.stamps[mine] == old.stamps[theirs]).all(1) & (new.stamps[mine, 0] >= 0)
    mine, theirs = mine[same], theirs[same]
    new.heads[mine], new.digests[mine] = old.heads[theirs], old.digests[theirs]
    to = dict(zip(theirs.tolist(), mine.tolist()))
    new.stores = dict(old.stores)
    new.reasons = {to[i]: why for i, why in old.reasons.items() if i in to}
    for rule, done in old.checked.items():
        new.checked[rule] = np.zeros(len(new.names), bool)
        new.checked[rule][mine] = done[theirs]
        new.failed[rule] = {to[i]: why for i, why in old.failed.get(rule, {}).items() if i in to}


def load(path: Path, made_by: str) -> Index | None:
    """What an earlier opening wrote; None where there is nothing, or by other decoders. Raises ``Damaged``."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        with np.load(BytesIO(content), allow_pickle=False) as held:
            parts = {key: held[key] for key in held.files}
        about = json.loads(parts["about"].tobytes())
        names = parts["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
        if about["made_by"] != made_by:
            return None
        kept = {rule: dict(rows) for rule, rows in about["failed"]}
        checked = {rule: parts[f"checked{i}"] for i, rule in enumerate(kept)}
        tables = (parts[key] for key in ("stamps", "heads", "digests"))
        index = Index(names, *tables, dict(about["reasons"]), checked, kept, about["stores"])
    except Exception as error:  # whatever a damaged file makes zip, NumPy and JSON raise
        raise Damaged("it is not as it was written") from error
    return index


def write(index: Index, file: BinaryIO, made_by: str) -> None:
    """As .npz, whose members carry checksums."""
    rules = list(index.checked)[-_RULES:]
    about = {
        "made_by": made_by,
        "stores": dict(list(index.stores.items())[-_RULES:]),
        "reasons": list(index.reasons.items()),
        "failed": [(rule, list(index.failed.get(rule, {}).items())) for rule in rules],
    }
    names = "\0".join(index.names).encode("utf-8", "surrogateescape")
    np.savez(
        file, names=np.frombuffer(names, np.uint8), stamps=index.stamps, heads=index.heads, digests=index.digests,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        **{f"checked{i}": index.checked[rule] for i, rule in enumerate(rules)},
    )  # fmt: skip
    file.truncate(file.tell())
