"""Boxes in Pascal VOC's layout: Annotations/*.xml, ImageSets/Main/*.txt, JPEGImages/."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from nearfar.data import limits
from nearfar.data.scenes import Counted, Scene, Scenes, clean, finished, listed_parts, part_of, size_of
from nearfar.data.source import shown


def looks_like_voc(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def from_voc(folder: Path, max_bad: float = 0.05) -> Scenes:
    """Open a folder in VOC's layout.

    The test part is ``test.txt``, or ``val.txt`` where there is none, and the training part ``train.txt``; without
    ImageSets, pictures are split by their names. A box's corners are pixels counted from 1, both inside, as VOC has
    them: (xmin - 1, ymin - 1, xmax, ymax) in ours.
    """
    counted, where = Counted(shown(folder)), shown(folder)
    parts = _parts(folder)
    read = {part: [_scene(folder, stem, counted) for stem in stems] for part, stems in parts.items()}
    names = sorted({name for held in read.values() for s in held if s for name in s[1]})
    scenes = {part: tuple(_numbered(*s, names) for s in held if s) for part, held in read.items()}
    total = sum(len(stems) for stems in parts.values())
    held = Scenes(where, "detection", tuple(names), scenes["train"], scenes["test"])
    return finished(held, counted, max_bad, total)


def _parts(folder: Path) -> dict[str, list[str]]:
    listed = listed_parts(folder / "ImageSets" / "Main")
    if listed is not None:
        return listed
    stems = sorted(p.stem for p in (folder / "Annotations").glob("*.xml"))
    return {part: [s for s in stems if part_of(s) == part] for part in ("train", "test")}


def _scene(folder: Path, stem: str, counted: Counted) -> tuple[Scene, list[str]] | None:
    """A picture's boxes with the names of their classes; None where picture or annotation is missing."""
    at = folder / "Annotations" / f"{stem}.xml"
    try:
        root = tree(limits.bytes_of(at, limits.XML))
    except FileNotFoundError:
        counted.add("pictures left out that have no annotation", stem)
        return None
    except limits.TooLarge as error:
        counted.add(f"pictures left out whose annotation is too large ({error})", stem)
        return None
    except (expat.ExpatError, ValueError, LookupError, OSError):  # no XML, or in no encoding that there is
        counted.add("pictures left out whose annotation is no XML", stem)
        return None
    name = Path(root.findtext("filename") or f"{stem}.jpg").name
    path = folder / "JPEGImages" / name
    if not os.path.isfile(path):  # which is False of a name too long, too
        path = next(iter(sorted((folder / "JPEGImages").glob(f"{_plain(stem)}.*"))), path)
    size = size_of(path, counted, stem)
    if size is None:
        return None
    objects = root.findall("object")
    boxes, kept = clean(np.array([_corners(o) for o in objects]), size, stem, counted)
    names = [(o.findtext("name") or "?").strip() for o, k in zip(objects, kept) if k]
    hard = [(o.findtext("difficult") or "0").strip() == "1" for o, k in zip(objects, kept) if k]
    return Scene(stem, path, size, boxes, crowd=np.array(hard, bool)), names


def tree(raw: bytes) -> Element:
    """XML's root, of a document that declares no types: an entity that stands for a million others is never read.

    Raises ``ExpatError`` where it is no XML, ``ValueError`` where it has a DOCTYPE or an encoding that there is not.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, _refuse_doctype
    parser.Parse(raw, True)
    return builder.close()


def _refuse_doctype(*about: object) -> NoReturn:
    raise ValueError("it has a DOCTYPE")


def _plain(stem: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in stem)


def _corners(node: Element) -> list[float]:
    try:
        x0, y0, x1, y1 = (float(node.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    except (TypeError, ValueError):
        return [float("nan")] * 4
    return [x0 - 1, y0 - 1, x1, y1]


def _numbered(scene: Scene, said: list[str], names: list[str]) -> Scene:
    from dataclasses import replace

    return replace(scene, labels=np.array([names.index(name) for name in said], np.int64))
