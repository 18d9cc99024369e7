"""The pictures of a transfer side by side, for a page: a line a test picture, the truth first.

    python benchmarks/transfer_strip.py RUN/transfer/detection-fcos -o docs/detection.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WIDTH, GAP, HEAD = 220, 6, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--labels", default="10", help="of this amount of labels")
    given = parser.parse_args()
    with open(given.folder / "pictures.npz", "rb") as file, np.load(file, allow_pickle=False) as held:
        drawn = {k: held[k] for k in held.files if k != "protocol"}
    lines: dict[str, dict[str, np.ndarray]] = {}
    for key, pixels in drawn.items():
        name, _, row = key.rpartition("/")
        start = f"{given.labels} labels, "
        if row == "truth" or row.startswith(start):
            lines.setdefault(name, {})[row.removeprefix(start)] = pixels
    rows = ["truth", *sorted({r for line in lines.values() for r in line} - {"truth"}, reverse=True)]
    small = {n: {r: Image.fromarray(p).resize((WIDTH, round(WIDTH * p.shape[0] / p.shape[1]))) for r, p in line.items()}
             for n, line in lines.items()}  # fmt: skip
    heights = [line["truth"].height for line in small.values()]
    sheet = Image.new("RGB", (len(rows) * (WIDTH + GAP), HEAD + sum(heights) + GAP * len(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        pen.text((i * (WIDTH + GAP), 2), row, fill="black")
        y = HEAD
        for line, height in zip(small.values(), heights):
            if row in line:
                sheet.paste(line[row], (i * (WIDTH + GAP), y))
            y += height + GAP
    sheet.save(given.out)
    print(given.out)


if __name__ == "__main__":
    main()
