"""How a valid file is made into one that nobody has written: by bytes, and by structure where it has one."""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
import zipfile
import zlib

import numpy as np

Rng = np.random.Generator
_INTEGERS = [0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]
_VALUES = [
    None, True, -1, 0, 1, 0.5, 2**63, -(2**70), 10**400, 1e308, -1e308, float("nan"), float("inf"), "", "x" * 3000,
    "\x00\x1b[2J\n\r", "\u202e\ud800", "$\\frac{$", "[/red]", "<script>alert(1)</script>", "</script><b>",
    "javascript:1", "'\"><img src=x onerror=alert(1)>", "red;background:url(//x)", "../../etc/passwd",
    "%s%n{0}", [], {}, [[]], {"a": {}}, [1, "2", None], {"": ""},
]  # fmt: skip
_TOML = ["nan", "inf", "-1", "0", "1e400", "true", '""', "[]", "{}", "0x7fffffffffffffff", "9" * 400, "9" * 5000,
         "[[[]]]", "1979-05-27", '"\\u0000"', "[" * 3000 + "]" * 3000, '"' + "a" * 5000 + '"', '"<script>"',
         "\'\'\'\n\n\'\'\'"]  # fmt: skip


def pick(values: list, rng: Rng) -> object:
    return values[int(rng.integers(len(values)))]


def bent(raw: bytes, rng: Rng, other: bytes = b"", magic: int = 0) -> bytes:
    """Bytes with one to four changes; their beginning, where headers are, more often than the rest.

    Nine times of ten the first ``magic`` bytes stay, by which a file is told from others.
    """
    if magic and rng.random() < 0.9:
        return raw[:magic] + bent(raw[magic:], rng, other)
    data = bytearray(raw)
    for _ in range(rng.integers(1, 5)):
        if not data:
            return bytes(rng.integers(0, 256, rng.integers(0, 64), dtype=np.uint8))
        at = int(rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 64)))
        how, n = rng.integers(8), int(rng.integers(1, 17))
        if how == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            data[at : at + n] = rng.integers(0, 256, n, dtype=np.uint8).tobytes()
        elif how == 2:
            del data[at:]
        elif how == 3:
            del data[at : at + n]
        elif how == 4:
            data[at:at] = data[at : at + 4 * n]
        elif how == 5:
            data[at : at + 4] = struct.pack(pick([">I", "<I"], rng), pick(_INTEGERS, rng))
        elif how == 6:
            data[at : at + 2] = struct.pack(pick([">H", "<H"], rng), pick(_INTEGERS[:10], rng))
        else:
            data[at:] = other[int(rng.integers(len(other) + 1)) :]
    return bytes(data)


def png_bytes(raw: bytes, rng: Rng) -> bytes:
    """A PNG whose chunks are changed, doubled or gone, and their checksums right."""
    out, at = [raw[:8]], 8
    while at + 12 <= len(raw):
        size = int.from_bytes(raw[at : at + 4], "big")
        kind, data = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + size]
        if kind == b"IDAT" and rng.random() < 0.3:
            data = zlib.compress(bent(zlib.decompress(data), rng, data))
        elif rng.random() < 0.3:
            data = bent(data, rng, raw)
        chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        out += [chunk] * int(pick([0, 1, 1, 1, 1, 1, 1, 1, 2], rng))
        at += 12 + size
    return b"".join(out)


def restructured(held: object, rng: Rng) -> object:
    """JSON's values with something of them taken away, doubled, nested, or another value in its place."""
    if rng.random() < 0.25 or not isinstance(held, dict | list) or not held:
        return pick(_VALUES, rng)
    copy = dict(held) if isinstance(held, dict) else list(held)
    key = pick(list(copy), rng) if isinstance(copy, dict) else int(rng.integers(len(copy)))
    how = rng.integers(6)
    if how == 0:
        del copy[key]
    elif how == 1 and isinstance(copy, list):
        copy.append(copy[key])
    elif how == 1:
        copy[str(key) + str(pick(_VALUES, rng))[:40]] = copy[key]
    else:
        copy[key] = restructured(copy[key], rng)
    return copy


def json_bytes(held: object, rng: Rng) -> bytes:
    """JSON with one to three changes of structure; some of it then with a key twice, nested deeply, or bent."""
    for _ in range(rng.integers(1, 4)):
        held = restructured(held, rng)
    raw = json.dumps(held).encode("utf-8", "surrogatepass")
    chance = rng.random()
    if chance < 0.1:
        return re.sub(rb'("\w+": )', rb"\g<1>null, \g<1>", raw, count=int(rng.integers(1, 5)))
    if chance < 0.15:
        deep = int(rng.integers(100, 50_000))
        return re.sub(rb": ", b": " + b"[" * deep + b"]" * deep + b', "a": ', raw, count=1)
    return raw if chance < 0.85 else bent(raw, rng, raw)


def toml_bytes(text: str, rng: Rng) -> bytes:
    """TOML with a value for another, a line twice, or one that nobody asked for."""
    lines = text.splitlines()
    for _ in range(rng.integers(0, 3)):
        at, value = int(rng.integers(len(lines))), pick(_TOML, rng)
        how = rng.integers(4)
        if how == 0:
            lines.insert(at, lines[int(rng.integers(len(lines)))])
        elif how == 1:
            lines.insert(at, pick(["[a" + ".a" * 2000 + "]", "[[views]]", "[optim]", "[settings.x]", "'<b>' = 1",
                                   '"\\u0007\\n" = 2', "a" * 900 + " = 1"], rng))  # fmt: skip
        else:
            lines[at] = f"{lines[at].partition('=')[0]}= {value}"
    raw = "\n".join(lines).encode()
    return raw if rng.random() < 0.6 else bent(raw, rng, raw)


def zipped(members: dict[str, bytes], rng: Rng) -> bytes:
    """A zip whose checksums are right, of members that are not."""
    out, share = io.BytesIO(), 0.8 / len(members)
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, raw in members.items():
            if rng.random() < share / 6:
                continue
            changed = bent(raw, rng, raw, 10) if rng.random() < share else raw
            file.writestr(name if rng.random() > share / 6 else "../" + name, changed)
            if rng.random() < share / 6:
                file.writestr(name, raw[: len(raw) // 2])
    raw = out.getvalue()
    return raw if rng.random() < 0.8 else bent(raw, rng, raw)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def unzipped(raw: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        return {name: file.read(name) for name in file.namelist()}
