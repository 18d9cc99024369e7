"""Finished runs to one Markdown table: means over seeds where runs differ by the seed alone.

    python benchmarks/table.py runs/cifar-*

Rows are grouped by the run's name up to its last `-`. The interval is the wider of Student's over seeds (where there
are at least three) and the single runs' own (over draws or test items).
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import t


def main(folders: list[str]) -> None:
    groups = defaultdict(list)
    for folder in folders:
        held = json.loads((Path(folder) / "results.json").read_text())["evaluation"]
        groups[Path(folder).name.rpartition("-")[0]].append({r["embedding"]: r["cells"] for r in held["rows"]})
    heads = list(next(iter(next(iter(groups.values()))[0].values())))
    print(f"| run | embedding | {' | '.join(heads)} |\n|---|---|{'---:|' * len(heads)}")
    for name, runs in groups.items():
        for embedding in runs[0]:
            cells = []
            for head in heads:
                got = [r[embedding][head] for r in runs]
                values = [c["value"] for c in got]
                half = np.mean([(c["high"] - c["low"]) / 2 for c in got])
                if len(values) > 2:
                    half = max(half, t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
                cells.append(f"{np.mean(values):.3f} ±{half:.3f}")
            seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
            print(f"| {name}{seeds} | {embedding} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
