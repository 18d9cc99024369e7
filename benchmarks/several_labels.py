"""Several labels an item: emoji and their commonest keywords, from raw pixels.

    python benchmarks/several_labels.py "$NEARFAR_DATA/pairs/emoji"
"""

import argparse
import collections
import csv
from pathlib import Path

import numpy as np
from PIL import Image

from nearfar.evaluate import evaluate

SIDE, LABELS = 16, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    given = parser.parse_args()
    with open(given.data / "captions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    said = [{w.strip() for w in row["keywords"].split(";")} - {""} for row in rows]
    common = [w for w, _ in collections.Counter(w for s in said for w in sorted(s)).most_common(LABELS)]
    y = np.array([[w in s for w in common] for s in said]).astype(int)
    x = []
    for row in rows:
        with Image.open(next((given.data / "img").glob(f"{row['file']}.*"))) as p:
            over = Image.new("RGBA", p.size, "white")
            over.alpha_composite(p.convert("RGBA"))
            x.append(np.asarray(over.convert("RGB").resize((SIDE, SIDE))).ravel() / 255)
    order = np.random.default_rng(0).permutation(len(x))
    test, train = np.split(order, [len(x) // 4])
    z = np.array(x, np.float32)
    print(f"{len(train)} training and {len(test)} test pictures, keywords: {', '.join(common)}")
    evaluate({"raw pixels": (z[train], z[test])}, y[train], y[test], tuple(common)).render()


if __name__ == "__main__":
    main()
