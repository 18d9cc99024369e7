"""What is known of a folder's files from earlier openings, so that the next one need not open them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nearfar.data import flat
from nearfar.data.names import Names, paired
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
    hashes: dict[str, np.ndarray] = field(default_factory=dict)  # rule -> (F,) uint64 of its pixels, where checked
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
            stamps[i] = stamp_of(os.stat(root + name))
    return unlooked(names, stamps)


def stamp_of(about: os.stat_result) -> tuple[int, int, int]:
    """What shows that a file has not changed: bytes, when its content and when anything of it changed."""
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


def settled(stamps: np.ndarray) -> np.ndarray:
    """The stamps, without those of files that have just changed, which are not to be trusted. (F, 3), in place"""
    stamps[stamps[:, _CHANGED] > time.time_ns() - _RECENT] = -1
    return stamps


def unlooked(names: Sequence[str], stamps: np.ndarray) -> Index:
    """Of these files nothing is known yet."""
    n = len(names)
    return Index(names, settled(stamps), np.full((n, 3), -1, np.int32), np.zeros((n, DIGEST), np.uint8))


def carry(old: Index, new: Index) -> None:
    """Take over what was known of files whose stamps are as they were; all of it as it lies, where none has changed."""
    new.stores = dict(old.stores)
    if old.names == new.names and np.array_equal(old.stamps, new.stamps) and (new.stamps[:, 0] >= 0).all():
        new.heads, new.digests = old.heads, old.digests
        new.reasons, new.checked, new.hashes, new.failed = old.reasons, old.checked, old.hashes, old.failed
        return
    theirs, mine = paired(old.names, new.names)
    same = (new.stamps[mine] == old.stamps[theirs]).all(1) & (new.stamps[mine, 0] >= 0)
    mine, theirs = mine[same], theirs[same]
    new.heads[mine], new.digests[mine] = old.heads[theirs], old.digests[theirs]
    to = np.full(len(old.names), -1, np.int64)  # (F of old,)
    to[theirs] = mine
    new.reasons = _moved(old.reasons, to)
    for rule, done in old.checked.items():
        new.checked[rule] = np.zeros(len(new.names), bool)
        new.checked[rule][mine] = done[theirs]
        new.hashes[rule] = np.zeros(len(new.names), np.uint64)
        new.hashes[rule][mine] = old.hashes[rule][theirs]
        new.failed[rule] = _moved(old.failed.get(rule, {}), to)


def _moved(reasons: dict[int, str], to: np.ndarray) -> dict[int, str]:
    return {int(to[i]): why for i, why in reasons.items() if to[i] >= 0}


def load(path: Path, made_by: str) -> Index | None:
    """What an earlier opening wrote, mapped; None where there is nothing, or by other decoders. Raises ``Damaged``."""
    try:
        parts = flat.load(path)
        about = json.loads(parts["about"].tobytes())
        if about["made_by"] != made_by:
            return None
        rules = [rule for rule, _ in about["failed"]]
        return Index(
            Names(parts["names"]), parts["stamps"], parts["heads"], parts["digests"], dict(about["reasons"]),
            {rule: parts[f"checked{i}"] for i, rule in enumerate(rules)},
            {rule: parts[f"hashes{i}"] for i, rule in enumerate(rules)},
            {rule: dict(rows) for rule, rows in about["failed"]}, about["stores"],
        )  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno is not None:
            raise
        raise Damaged("it is not as it was written") from error
    except Exception as error:  # whatever a damaged file makes zip, NumPy and JSON raise
        raise Damaged("it is not as it was written") from error


def write(index: Index, file: BinaryIO, made_by: str) -> None:
    """As .npz, whose members carry checksums."""
    rules = list(index.checked)[-_RULES:]
    about = {
        "made_by": made_by,
        "stores": dict(list(index.stores.items())[-_RULES:]),
        "reasons": list(index.reasons.items()),
        "failed": [(rule, list(index.failed.get(rule, {}).items())) for rule in rules],
    }
    names = index.names if isinstance(index.names, Names) else Names.of(index.names)
    flat.write(file, {
        "names": names.content, "stamps": index.stamps, "heads": index.heads, "digests": index.digests,
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        **{f"checked{i}": index.checked[rule] for i, rule in enumerate(rules)},
        **{f"hashes{i}": index.hashes[rule] for i, rule in enumerate(rules)},
    })  # fmt: skip
