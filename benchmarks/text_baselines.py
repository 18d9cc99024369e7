"""What counts alone are worth on real text: TF-IDF and averaged word vectors, on scored pairs and on classes.

    python benchmarks/text_baselines.py "$NEARFAR_DATA/text"

Fitted on training texts: those of the classes, and for pairs the training pairs and 14,750 sentences of Wikipedia.
"""

import argparse
import csv
import time
import zipfile
from pathlib import Path

import numpy as np

from nearfar import lexical
from nearfar.evaluate import evaluate, judge_pairs, judge_retrieval


def embedded(train: list[str], *parts: list[str]) -> dict[str, tuple]:
    """Each baseline's embedding of each part."""
    began = time.perf_counter()
    tf_idf, words = lexical.tf_idf(train), lexical.word_vectors(train)
    print(f"{len(train):,} texts, {len(words.vocabulary):,} words, fitted in {time.perf_counter() - began:.1f} s")
    kinds = {"TF-IDF": tf_idf, "averaged word vectors": words.averaged, "SIF": words.sif,
             "SIF, nothing removed": lambda texts: words.sif(texts, remove=False)}  # fmt: skip
    return {name: tuple(embed(p) for p in parts) for name, embed in kinds.items()}


def pairs(data: Path) -> None:
    parts = {}
    for part in ("train", "test"):
        with open(data / f"stsb/{part}.csv", encoding="utf-8", newline="") as file:
            parts[part] = list(csv.reader(file))
    train = [t for row in parts["train"] for t in row[:2]]
    train += (data / "sentences/wikipedia_14750.txt").read_text(encoding="utf-8").splitlines()
    a, b, scores = zip(*parts["test"])
    sides = embedded(train, list(a), list(b))
    judged = judge_pairs(sides, np.array(scores, np.float64))
    judged.render()
    print(*judged.notes, sep="\n")
    high = np.array(scores, np.float64) >= 4  # paraphrases
    found = judge_retrieval({k: (x[high], y[high]) for k, (x, y) in sides.items()},
                            np.unique(np.array(b)[high], return_inverse=True)[1])  # fmt: skip
    found.render()


def classes(title: str, train: tuple[list[str], list[str]], test: tuple[list[str], list[str]]) -> None:
    names = tuple(sorted(set(train[1])))
    y, t = (np.array([names.index(label) for label in part[1]]) for part in (train, test))
    print(title)
    began = time.perf_counter()
    features = embedded(train[0], train[0], test[0])
    evaluate(features, y, t, names, labels_per_class=(10,), draws=5, what="text").render()
    print(f"judged in {time.perf_counter() - began:.1f} s")


def banking(data: Path) -> list[tuple[list[str], list[str]]]:
    parts = []
    for part in ("train", "test"):
        with open(data / f"banking77/{part}.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        parts.append(([r["text"] for r in rows], [r["category"] for r in rows]))
    return parts


def subjectivity(data: Path) -> list[tuple[list[str], list[str]]]:
    """Every fifth sentence of either class is a test sentence."""
    parts: list[tuple[list[str], list[str]]] = [([], []), ([], [])]
    with zipfile.ZipFile(data / "subjectivity.zip") as held:
        for name in sorted(n for n in held.namelist() if ".tok." in n):
            for i, line in enumerate(held.read(name).decode("latin-1").splitlines()):
                part = parts[i % 5 == 0]
                part[0].append(line)
                part[1].append(Path(name).name.split(".")[0])
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    given = parser.parse_args()
    pairs(given.data)
    classes("banking77", *banking(given.data))
    classes("subjectivity", *subjectivity(given.data))


if __name__ == "__main__":
    main()
