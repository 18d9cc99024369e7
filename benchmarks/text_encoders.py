"""The transformer's step, forward and backward, without padding and with it, beside its dense layers' products alone.

    OMP_NUM_THREADS=1 python benchmarks/text_encoders.py shared/data/text/sentences/wikipedia_14750.txt

256 sentences, a token a word, two for long ones; CPU seconds, medians. Dropout is off, since the padded path has none.
"""

import argparse
import re
import statistics
import time
from pathlib import Path

import torch

from nearfar.encoders.words import text_encoder
from nearfar.training.memory import keep_freed


def median(call, repeats: int) -> float:
    took = []
    for _ in range(repeats + 2):
        start = time.process_time()
        call()
        took.append(time.process_time() - start)
    return statistics.median(took[2:])


def batch(path: Path, rows: int) -> torch.Tensor:
    """Tokens by the words' lengths alone. -> (B, L), -1 at the ends"""
    lines = path.read_text(encoding="utf-8").splitlines()
    chosen = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))[:rows]
    counts = [min(64, 2 + sum(1 + (len(w) > 7) for w in re.findall(r"\w+|[^\w\s]", lines[i]))) for i in chosen]
    x = torch.full((rows, max(counts)), -1)
    for row, n in zip(x, counts):
        row[:n] = torch.randint(8000, (n,))
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    keep_freed()
    x = batch(given.path, given.rows)
    ids, mask, tokens = x.clamp(min=0), x >= 0, int((x >= 0).sum())
    print(f"{given.rows} rows, {tokens} tokens, {mask.float().mean():.0%} of the padded batch\n")
    print("| numbers | path | seconds | floor | floor / seconds |\n|---|---|---:|---:|---:|")
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(4096, 1024, dtype=dtype), torch.randn(1024, 1024, dtype=dtype)
        peak = 2 * a.numel() * 1024 / median(lambda: a @ b, given.repeats)  # noqa: B023
        for path, dropout in (("packed", 0.0), ("packed, dropout 0.1", 0.1), ("padded", 0.0)):
            encoder = text_encoder("transformer", 8000, dropout=dropout)

            def step() -> None:
                encoder.zero_grad()  # noqa: B023
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):  # noqa: B023
                    z = encoder.padded(ids, mask) if path == "padded" else encoder(x)  # noqa: B023
                z.float().square().sum().backward()

            floor = 3 * 4 * 24 * 256**2 * tokens / peak  # forward and twice backward, layers, 12 d² weights twice
            took = median(step, given.repeats)
            print(f"| {dtype} | {path} | {took:.3f} | {floor:.3f} | {floor / took:.0%} |", flush=True)


if __name__ == "__main__":
    main()
