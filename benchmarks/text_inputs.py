"""How fast text is opened and becomes tokens, and in how much memory.

    python benchmarks/text_inputs.py --data "$NEARFAR_DATA"

A file of a million lines, those of Wikipedia's 14,750 sentences again and again with a number, is opened in a process
of its own: seconds, and the most that it held beyond what it held before. The sentences themselves are tokenised by a
WordPiece and a BPE of 8,000 that were trained on them: sentences a second of one core, median of five.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from nearfar.text import open_texts
from nearfar.text.tokenizer import Tokenizer

LINES = 1_000_000


def opened(path: str) -> None:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, time.perf_counter()
    texts = open_texts(path, say=lambda text: None).train
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(texts):,} lines, {len(texts.blob) / 2**20:.0f} MiB of text: {seconds:.1f} s, {peak - before:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        return opened(args.child)
    texts = list(open_texts(args.data / "text" / "sentences" / "wikipedia_14750.txt").train.column())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.txt"
        rows = (f"{texts[i % len(texts)][:64]} {i}\n" for i in range(LINES))
        with open(path, "w") as file:
            while block := list(islice(rows, 10_000)):
                file.write("".join(block))
        subprocess.run([sys.executable, __file__, "--child", str(path)], check=True)
    for kind in ("wordpiece", "bpe"):
        tokenizer, rates = Tokenizer.train(texts, kind=kind, vocabulary=8000), []
        for _ in range(5):
            began = time.perf_counter()
            tokenizer.encode(texts, 64)
            rates.append(len(texts) / (time.perf_counter() - began))
        print(f"{kind}: {statistics.median(rates):,.0f} sentences a second")
    return None


if __name__ == "__main__":
    main()
