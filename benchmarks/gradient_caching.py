"""What a batch of 65,536 takes with gradient caching: peak memory, and time beside a plain step.

    python benchmarks/gradient_caching.py [--threads 1] [--chunk 256] [--largest 65536]

Each row is a process of its own that takes one SimCLR step (NT-Xent over pairs of noisy views of random 3×32×32
images, made chunk by chunk) with a small CNN and group normalisation, so that a plain step computes the same
function. Peak resident memory is counted over that of the imports. Writes a Markdown table.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch
from resident import peak
from torch import Tensor, nn

from nearfar.losses import nt_xent
from nearfar.losses.caching import in_chunks


def encoder() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for wide, out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(wide, out, 3, stride=2, padding=1), nn.GroupNorm(8, out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 128))


def views(n: int):
    """A batch as a callable: row i and row i + n/2 are noisy views of the same picture, made when asked for."""

    def load(part: slice) -> Tensor:
        index = torch.arange(part.start, part.stop)  # (b,)
        x = torch.empty(len(index), 3, 32, 32)
        for row, picture in zip(x, (index % (n // 2)).tolist()):
            row.normal_(generator=torch.Generator().manual_seed(picture))
        noise = torch.Generator().manual_seed(part.start + 1)
        return x + 0.5 * torch.randn(x.shape, generator=noise)

    return load


def one(n: int, chunk: int, repeats: int, plain: int) -> tuple[float, float, float]:
    """Peak MB over the imports, median seconds a step, and the gradient's norm."""
    before = peak()
    net, load, groups, took = encoder(), views(n), torch.arange(n // 2).repeat(2), []
    for _ in range(repeats):
        net.zero_grad()
        start = time.perf_counter()
        if plain:  # the same chunks of pictures, and so the same noise
            z = net(torch.cat([load(slice(at, min(at + chunk, n))) for at in range(0, n, chunk)]))
        else:
            z = in_chunks(net, load, chunk, rows=n)
        nt_xent(z, groups, temperature=0.1).backward()
        took.append(time.perf_counter() - start)
    norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
    return peak() - before, statistics.median(took), float(norm)


def apart(threads: int, *args: int) -> list[float]:
    command = [sys.executable, __file__, "--threads", str(threads), "--one", *(str(int(a)) for a in args)]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    got = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    return [float(v) for v in got.stdout.split()]


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--threads", type=int, default=torch.get_num_threads())
    cli.add_argument("--chunk", type=int, default=256)
    cli.add_argument("--largest", type=int, default=65536)
    cli.add_argument("--one", type=int, nargs=4, help=argparse.SUPPRESS)
    args = cli.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(*one(*args.one))
        return
    print(f"torch {torch.__version__}, {args.threads} threads, chunk {args.chunk}, float32, d = 128\n")
    print("| step | batch | peak over imports, MB | seconds | of the plain step's | gradient's norm |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    plain = 0.0
    for name, n in (("plain", 4096), ("in_chunks", 4096), ("in_chunks", 16384), ("in_chunks", 65536)):
        if n > args.largest:
            continue
        most, seconds, norm = apart(args.threads, n, args.chunk, 3 if n <= 4096 else 1, name == "plain")
        plain = plain or seconds
        ratio = f"{seconds / plain:.2f}" if n == 4096 else ""
        print(f"| {name} | {n:,} | {most:,.0f} | {seconds:.1f} | {ratio} | {norm:.6f} |", flush=True)


if __name__ == "__main__":
    main()
