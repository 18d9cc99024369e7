"""Time and memory of the losses, forward and backward: nearfar, plain PyTorch, lightly, pytorch-metric-learning.

    pip install lightly pytorch-metric-learning
    python benchmarks/losses.py [--pairs 1024 4096 16384 65536] [--width 128]

Every figure comes from a process of its own: the median of several runs, and the largest resident memory over what
the imports and the bare embeddings' process needed before. The floor is arithmetic: the least multiply-adds an exact
loss with one recomputation needs (times two), at the matrix-product rate measured in the same process:

    self      NT-Xent over B = 2N rows, products over the upper triangle:    4 B² d
    towers    CLIP both ways, InfoNCE one way, N rows against N keys:        8 N² d
    sigmoid   N rows against N keys, gradient in the forward pass:           6 N² d

What a peer cannot hold in the machine's memory is left out, with what it would have asked for.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from resident import peak


def plain_nt_xent(a, b):
    import torch
    import torch.nn.functional as F

    z = F.normalize(torch.cat([a, b]), dim=1)
    n = len(a)
    logits = (z @ z.T / 0.1).fill_diagonal_(float("-inf"))
    return F.cross_entropy(logits, torch.cat([torch.arange(n, 2 * n), torch.arange(n)]).to(a.device))


def plain_clip(a, b):
    import torch
    import torch.nn.functional as F

    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.1
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def plain_info_nce(a, b):
    import torch
    import torch.nn.functional as F

    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.1
    return F.cross_entropy(logits, torch.arange(len(a), device=a.device))


def plain_sigmoid(a, b):
    import torch
    import torch.nn.functional as F

    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.1 - 10
    y = 2 * torch.eye(len(a), device=a.device) - 1
    return -F.logsigmoid(y * logits).sum() / len(a)


def nearfar(name):
    import torch

    from nearfar import losses

    def own(a, b):
        return losses.nt_xent(torch.cat([a, b]), torch.arange(len(a), device=a.device).repeat(2), temperature=0.1)

    def two(a, b):
        ids = torch.arange(len(a), device=a.device)
        return getattr(losses, name)(a, ids, b, ids, temperature=0.1)

    return own if name == "nt_xent" else two


def lightly():
    from lightly.loss import NTXentLoss

    return NTXentLoss(0.1)


def pml(name):
    import torch
    from pytorch_metric_learning import losses

    loss = getattr(losses, name)(0.1)
    return lambda a, b: loss(torch.cat([a, b]), torch.arange(len(a)).repeat(2))


# kind -> (rows of work a pair, operations / d / rows², {who: (make, bytes held a row² of the matrix)})
KINDS = {
    "NT-Xent": (2, 4, {
        "nearfar": (lambda: nearfar("nt_xent"), 0), "plain": (lambda: plain_nt_xent, 16), "lightly": (lightly, 28),
        "pml SupCon": (lambda: pml("SupConLoss"), 52), "pml NT-Xent": (lambda: pml("NTXentLoss"), None),
    }),
    "CLIP": (1, 8, {"nearfar": (lambda: nearfar("clip"), 0), "plain": (lambda: plain_clip, 28)}),
    "InfoNCE": (1, 8, {"nearfar": (lambda: nearfar("info_nce"), 0), "plain": (lambda: plain_info_nce, 16)}),
    "sigmoid": (1, 6, {"nearfar": (lambda: nearfar("sigmoid"), 0), "plain": (lambda: plain_sigmoid, 28)}),
}  # fmt: skip


def rate() -> float:
    """Multiply-adds times two a second of a float32 product that fits the caches, the median of many."""
    import torch

    a, b, out = torch.randn(1024, 128), torch.randn(1024, 128), torch.empty(1024, 1024)
    took = []
    for _ in range(60):
        start = time.perf_counter()
        torch.mm(a, b.T, out=out)
        took.append(time.perf_counter() - start)
    return 2 * 1024 * 1024 * 128 / statistics.median(took[10:])


def one(kind: str, who: str, pairs: int, width: int, repeats: int, device: str) -> None:
    """Measure one loss in this process and print it as JSON."""
    import torch

    loss = KINDS[kind][2][who][0]()
    warm = [torch.randn(64, width, device=device, requires_grad=True) for _ in range(2)]
    loss(*warm).backward()  # code, threads and their buffers are there
    speed = rate()
    before = peak()
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(pairs, width, generator=g).to(device).requires_grad_() for _ in range(2))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    took, value = [], 0.0
    start_all = time.perf_counter()
    while len(took) < 1 or (len(took) < repeats and time.perf_counter() - start_all < 30):
        a.grad = b.grad = None
        wait()
        start = time.perf_counter()
        out = loss(a, b)
        out.backward()
        wait()
        took.append(time.perf_counter() - start)
        value = out.item()
        del out
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak() - before
    print(json.dumps({"seconds": statistics.median(took), "memory": memory, "before": before, "rate": speed,
                      "loss": value, "runs": len(took)}))  # fmt: skip


def held(who: str, matrix: float, pairs: int, memory: float | None) -> str | None:
    """Why a peer is left out, or None."""
    if memory is None:  # (positive pairs × negative pairs) for one tensor
        need = 4.0 * (2 * pairs) * (2 * pairs) * (2 * pairs - 2)
    else:
        need = memory * matrix
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.7
    return f"asks for {need / 1e9:,.0f} GB" if need > limit else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return one(given.one[0], given.one[1], int(given.one[2]), given.width, given.repeats, given.device)
    print("| loss | pairs | who | seconds | floor | share of the floor's speed | against plain | memory over import |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for kind in given.kinds:
        rows_a_pair, work, whos = KINDS[kind]
        for pairs in given.pairs:
            got = {}
            for who, (_, memory) in whos.items():
                why = held(who, (rows_a_pair * pairs) ** 2, pairs, memory)
                if why:
                    print(f"| {kind} | {pairs:,} | {who} | {why} | | | | |", flush=True)
                    continue
                words = [sys.executable, __file__, "--width", str(given.width), "--repeats", str(given.repeats),
                         "--device", given.device, "--one", kind, who, str(pairs)]  # fmt: skip
                said = subprocess.run(words, capture_output=True, text=True)
                if said.returncode:
                    last = (said.stderr.strip().splitlines() or [f"killed ({said.returncode})"])[-1][:60]
                    print(f"| {kind} | {pairs:,} | {who} | {last} | | | | |", flush=True)
                    continue
                got[who] = json.loads(said.stdout.splitlines()[-1])
            for who, r in got.items():
                floor = work * (rows_a_pair * pairs) ** 2 * given.width / r["rate"]
                against = f"{r['seconds'] / got['plain']['seconds']:.2f}" if "plain" in got else ""
                print(f"| {kind} | {pairs:,} | {who} | {r['seconds']:.3f} | {floor:.3f} | {floor / r['seconds']:.0%} | "
                      f"{against} | {r['memory']:,.0f} MB |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
