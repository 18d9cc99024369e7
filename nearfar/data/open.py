"""From what a person types to a source."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.data import annotations, arrays, idx, named, patches, shards
from nearfar.data import folder as folders
from nearfar.data.pictures import decode, quiet, reason
from nearfar.data.source import Source, Splits, shown
from nearfar.errors import UserError, nearest

_KNOWN = "a folder of images or of tar shards, an .npy, .npz or IDX file, torchvision:NAME, hf:NAME or digits"


def open_source(
    spec: Any, *, image_size: int = 0, channels: int = 0, max_bad: float = 0.05, patch: int = 0, long_side: int = 0,
    progress: folders.Progress | None = None, cache_gb: float | None = None,
    say: Callable[[str], None] = folders.to_stderr,
) -> Splits:  # fmt: skip
    """Open a source of images.

    Args:
        spec: a folder, tar shards (a folder of them, one, or ``s-{000..099}.tar``), an .npy, .npz or IDX file,
            ``torchvision:NAME``, ``hf:NAME``, ``digits``; or an array
            (N, H, W) or (N, H, W, C), or ``(images, labels)``; or a ``Source`` or ``Splits``.
        image_size: pixels a side to resize to; 0 keeps arrays, and for folders takes the images' own size
            where all agree and none is over 96, else their median shorter side, at most 96.
        channels: 1 or 3 for image files; 0: grey only where all of them are.
        max_bad: largest share of unreadable images that is put up with.
        patch, long_side: of a folder of large pictures, squares of ``patch`` pixels, without labels, after the longer
            side was brought to ``long_side``; 0: whole pictures, at their own size.
        progress: is told ``(done, total)`` while files are decoded, of those that must be.
        cache_gb: folders of which the decoded images take more than this are decoded as they are read; the others
            once, into the cache. Left out: NEARFAR_CACHE_GB, 32 where that is not set.
        say: is told in one line what goes wrong with the cache.

    Raises ``UserError``, in one line that names the value and the fix.

    >>> splits = open_source("digits")
    >>> len(splits.train), splits.train.shape, len(splits.test)
    (1200, (8, 8, 1), 597)
    """
    if isinstance(spec, Splits):
        return spec
    if isinstance(spec, Source):
        return Splits(spec)
    if isinstance(spec, tuple) and len(spec) == 2:
        return Splits(arrays.from_array(spec[0], spec[1], image_size=image_size))
    if not isinstance(spec, str | os.PathLike):
        return Splits(arrays.from_array(spec, image_size=image_size))
    text = os.fsdecode(spec)
    given = folders.Options(image_size, channels, max_bad, progress, cache_gb, say)
    if text == "digits":
        return named.digits(image_size)
    library, _, name = text.partition(":")
    if library == "torchvision" and name:
        return named.from_torchvision(name, image_size)
    if library == "hf" and name:
        return named.from_hugging_face(name, given)
    path = Path(text)
    if not text.strip():
        raise UserError(f"the source is empty: give {_KNOWN}")
    if os.path.isdir(path):
        found = idx.find_images(path)
        if found:
            return idx.from_idx(found, image_size)
        if shards.looks_sharded(path):
            _no_patches(path, patch)
            return shards.from_shards(text, given)
        return _from_folder(path, given, patch, long_side)
    if shards.looks_like_shards(text):
        _no_patches(path, patch)
        return shards.from_shards(text, given)
    if os.path.isfile(path):
        return _from_file(path, image_size)
    near = "" if os.sep in text or path.suffix else nearest(text, ["digits", f"torchvision:{name}", f"hf:{name}"])
    raise UserError(f"{shown(text)}: no such file or folder{near if 'did you mean' in near else f': give {_KNOWN}'}")


def _no_patches(path: Path, patch: int) -> None:
    if patch:
        raise UserError(f"{shown(path)}: patches are of a folder of pictures: leave --patch {patch} out")


def _from_folder(path: Path, given: folders.Options, patch: int, long_side: int) -> Splits:
    """A folder of images; of annotated ones the training part alone, without what is annotated."""
    annotated = annotations.open_scenes(path, given.max_bad) if annotations.looks_annotated(path) else None
    if annotated is not None:
        for note in annotated.notes:
            given.say(f"{shown(path)}: {note}")
        given.say(f"{shown(path)}: {len(annotated.train)} training pictures, without their annotations")
    if patch:
        paths = folders.pictures_of(path) if annotated is None else [s.path for s in annotated.train]
        return Splits(patches.from_pictures(paths, shown(path), patch=patch, long_side=long_side, max_bad=given.max_bad,
                                            channels=given.channels, progress=given.progress))  # fmt: skip
    if annotated is not None:
        names = [os.path.relpath(s.path, path) for s in annotated.train]
        return Splits(folders.from_files(path, names, given))
    return folders.from_folder(path, given)


def _from_file(path: Path, image_size: int) -> Splits:
    """A single file, by its suffix or its first bytes."""
    if path.suffix.lower() == ".npy":
        return arrays.from_npy(path, image_size)
    if path.suffix.lower() == ".npz":
        return arrays.from_npz(path, image_size)
    if idx.looks_like_idx(path):
        return idx.from_idx(path, image_size)
    raise UserError(f"{shown(path)} is no source of images: give {_KNOWN}")


def open_image(path: str | Path, shape: tuple[int, int, int]) -> Source:
    """One image file as a source of one, at a run's (H, W, C)."""
    if shape[2] not in (1, 3):
        raise UserError(f"{path}: a query file has 1 or 3 channels, the run wants {shape[2]}: give an index")
    if not Path(path).is_file():
        raise UserError(f"query {path}: give an index into the source or an image file")
    try:
        with quiet():
            pixels = decode(Path(path), shape[2], shape[0] if shape[0] == shape[1] else 0)
    except Exception as error:  # Pillow's decoders raise all kinds
        raise UserError(f"query {shown(path)} cannot be read: {reason(error)}") from None
    return arrays.from_array(np.asarray(pixels)[None], where=str(path))
