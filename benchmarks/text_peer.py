"""nearfar beside sentence-transformers: SimCSE on the same sentences, model, weights, optimiser and number of threads.

    pip install "nearfar[text,transformers]" "sentence-transformers[train]"
    python benchmarks/text_peer.py --data "$NEARFAR_DATA" --out text_peer.json
    python benchmarks/text_peer.py --table text_peer.json

The model is a BERT of 2 layers and width 256 with random weights, saved once as a folder that both read: nearfar as
`transformers:FOLDER` with mean pooling, the peer as its `Transformer` and `Pooling`. The text is 14,750 sentences of
Wikipedia, each its own positive by dropout 0.1; the loss InfoNCE at temperature 0.05, the peer's
`MultipleNegativesRankingLoss` with scale 20. AdamW, decay 0.01 on matrices, clipped at 1, half a cosine after 5 % of
warm-up, at most 64 tokens, on both. Every measurement is a process of its own, ours and theirs in turn.

- speed: sentences a second after warm-up, by the median time of a step; ratios are taken within a round,
  of the processes' CPU time, too, which other work on the machine disturbs less.
- quality: Spearman on STS-B's test pairs after the same number of steps from the same weights, by seed.
- memory: the process's peak less what it held before training, two steps of 4,096 sentences. The peer without gradient
  caching is measured where it fits and laid along a line.

Rows of the peer: as its documentation has it; `grouped`, batches of about one length by a batch sampler of our own
(its trainer does not read transformers' `group_by_length`); `cached`, its gradient caching with mini-batches of about
one number of tokens, which sorts by length. Its padding-free path wants flash attention, which a CPU has not. Rows of
ours: `ours`, the peer's model; `packed`, our own Transformer of that size, which computes no padding.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

import numpy as np
from scipy.stats import t

WIDTH, HEADS, LENGTH, VOCABULARY = 256, 4, 64, 8000
LR, DECAY, BETA2, WARMUP, CLIP = 5e-4, 0.01, 0.999, 0.05, 1.0
STEPS, WARM = {64: 24, 256: 10}, 3  # of a measurement of speed, and how many of them are not looked at
PEERS = ("theirs", "grouped", "cached")
LIMIT = 11 * 2**30  # bytes of a process in which memory is measured


def sentences(data: Path) -> list[str]:
    lines = (data / "text" / "sentences" / "wikipedia_14750.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip()]


def prepare(folder: Path, data: Path, layers: int, seeds: list[int]) -> None:
    """A folder for each seed with the same tokeniser and a BERT of random weights."""
    import torch
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from nearfar.text.tokenizer import Tokenizer

    held = Tokenizer.train(sentences(data), vocabulary=VOCABULARY, lower=True)
    (folder / "tokenizer.json").write_text(held.to_json(), encoding="utf-8")
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", pad_token="[PAD]", model_max_length=LENGTH,
    )  # fmt: skip
    for seed in seeds:
        torch.manual_seed(seed)
        config = BertConfig(vocab_size=len(theirs), hidden_size=WIDTH, num_hidden_layers=layers,
                            num_attention_heads=HEADS,
                            intermediate_size=4 * WIDTH, max_position_embeddings=LENGTH,
                            pad_token_id=theirs.pad_token_id,
                            hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)  # fmt: skip
        BertModel(config).save_pretrained(folder / str(seed))
        theirs.save_pretrained(folder / str(seed))


def ours(job: dict, texts: list[str], ticks: list[tuple[float, float]]):
    """Train by nearfar; what turns texts into vectors."""
    import nearfar
    from nearfar.methods import simcse
    from nearfar.text import TextOptions
    from nearfar.training.optim import Optim

    simcse.Method.after_step = lambda self, progress: ticks.append((time.perf_counter(), time.process_time()))
    folder, packed = job["folder"], job["who"].startswith("packed")
    run = nearfar.train(
        texts, out=f"{job['scratch']}/run", method="simcse", batch=job["batch"], steps=job["steps"], seed=job["seed"],
        encoder="transformer" if packed else f"transformers:{folder}", width=WIDTH if packed else 0,
        text=TextOptions(max_length=LENGTH, pooling="mean", dropout=0.1, tokenizer=folder if packed else "wordpiece",
                         layers=job["layers"] if packed else 0, heads=HEADS if packed else 0),
        optim=Optim(lr=LR, weight_decay=DECAY, beta2=BETA2, warmup=WARMUP, clip=CLIP), settings={"head": 0},
        precision=job["precision"], chunk=job.get("chunk", 0), evaluate=False, show=False,
    )  # fmt: skip
    return run.embed


def theirs(job: dict, texts: list[str], ticks: list[tuple[float, float]]):
    """Train by sentence-transformers; what turns texts into vectors."""
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import TrainerCallback

    class Tick(TrainerCallback):
        def on_step_end(self, *given, **held) -> None:
            ticks.append((time.perf_counter(), time.process_time()))

    model = SentenceTransformer(modules=[Transformer(job["folder"], max_seq_length=LENGTH), Pooling(WIDTH, "mean")],
                                device="cpu")  # fmt: skip
    loss = MultipleNegativesRankingLoss(model, scale=20.0)
    if job["who"] == "cached":
        by = {"mini_batch_size": job["chunk"]} if "chunk" in job else {"mini_batch_num_tokens": 2048}
        loss = CachedMultipleNegativesRankingLoss(model, scale=20.0, **by)
    more = {"batch_sampler": grouped(texts)} if job["who"] == "grouped" else {}
    args = SentenceTransformerTrainingArguments(
        output_dir=f"{job['scratch']}/peer", per_device_train_batch_size=job["batch"], max_steps=job["steps"],
        learning_rate=LR, weight_decay=DECAY, adam_beta2=BETA2, lr_scheduler_type="cosine",
        warmup_steps=round(WARMUP * job["steps"]), max_grad_norm=CLIP, seed=job["seed"], use_cpu=True,
        bf16=job["precision"] == "bf16-mixed", dataloader_drop_last=True, save_strategy="no", logging_strategy="no",
        report_to="none", disable_tqdm=True, **more,
    )  # fmt: skip
    data = Dataset.from_dict({"sentence_0": texts, "sentence_1": texts})
    SentenceTransformerTrainer(model=model, args=args, train_dataset=data, loss=loss, callbacks=[Tick()]).train()
    return lambda part: model.encode(part, batch_size=256, show_progress_bar=False)


def grouped(texts: list[str]):
    """A batch sampler by length within 50 batches drawn at random, as transformers' LengthGroupedSampler."""
    from sentence_transformers.base.sampler import DefaultBatchSampler

    sizes = np.array([len(text.split()) for text in texts])

    class Grouped(DefaultBatchSampler):
        def __iter__(self):
            rng = np.random.default_rng(self.seed + self.epoch)
            order = rng.permutation(len(sizes))
            blocks = [order[i : i + 50 * self.batch_size] for i in range(0, len(order), 50 * self.batch_size)]
            order = np.concatenate([block[np.argsort(-sizes[block], kind="stable")] for block in blocks])
            batches = order[: len(order) // self.batch_size * self.batch_size].reshape(-1, self.batch_size)
            yield from rng.permutation(batches).tolist()

    return Grouped


def child(job: dict, data: Path) -> dict:
    import torch

    warnings.filterwarnings("ignore")
    torch.set_num_threads(job["threads"])
    texts, ticks = sentences(data), []
    peer = job["who"] in PEERS
    if peer:
        import datasets  # noqa: F401
        import sentence_transformers  # noqa: F401
    else:
        import transformers  # noqa: F401

        import nearfar.pretrain  # noqa: F401
    if job["part"] == "memory":
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    before, began = held_now(), time.perf_counter()
    with tempfile.TemporaryDirectory() as job["scratch"]:
        embed = (theirs if peer else ours)(job, texts, ticks)
        took, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        out = {k: job[k] for k in ("part", "who", "batch", "precision", "seed", "steps")}
        out |= {"seconds": round(took, 2), "first_step_after": round(ticks[0][0] - began, 2),
                "before_mb": round(before, 1),
                "peak_mb": round(peak, 1), "training_mb": round(peak - before, 1)}  # fmt: skip
        if job["part"] == "speed":
            each, cpu = np.diff(ticks, axis=0)[WARM - 1 :].T  # (steps,), (steps,)
            out |= {"step_ms": round(1000 * median(each), 2), "cpu_ms": round(1000 * median(cpu), 2),
                    "speed": round(job["batch"] / median(each), 1),
                    "speed_whole": round(job["batch"] * len(each) / each.sum(), 1)}  # fmt: skip
        if job["part"] == "quality":
            out["spearman"] = sts(embed, data)
    return out


def held_now() -> float:
    """MB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def sts(embed, data: Path) -> float:
    from scipy.stats import spearmanr

    with open(data / "text" / "stsb" / "test.csv", encoding="utf-8", newline="") as file:
        a, b, scores = zip(*((row[0], row[1], float(row[2])) for row in csv.reader(file)))
    x, y = (np.asarray(embed(list(part)), np.float64) for part in (a, b))  # (N, d)
    cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    return round(float(spearmanr(cosines, scores)[0]), 5)


def floor(folder: Path, data: Path, layers: int, threads: int) -> dict:
    """What there is to compute: tokens of a batch, with padding as each has it, and what this machine's products do."""
    import torch

    from nearfar.encoders.packing import pack
    from nearfar.text.tokenizer import Tokenizer

    torch.set_num_threads(threads)
    _, lengths = Tokenizer.load(str(folder / "0")).encode(sentences(data), LENGTH)
    rng, out = np.random.default_rng(0), {"mean_tokens": round(float(lengths.mean()), 2)}
    for batch in STEPS:
        held = [np.sort(rng.choice(lengths, batch, replace=False)) for _ in range(30)]
        real = sum(int(part.sum()) for part in held)
        padded = sum(batch * int(part.max()) for part in held)
        grouped = 0
        for part in held:
            both = torch.as_tensor(np.repeat(part, 2)).long()  # both views of a sentence
            x = torch.where(torch.arange(LENGTH) < both[:, None], 1, -1)
            grouped += sum(g.rows * g.longest for g in pack(x, LENGTH, VOCABULARY).groups) / 2
        # a token's products in a layer: 12 d² in dense layers, two of 2·L·d in attention; backward twice the forward
        flops = 3 * 2 * layers * real / len(held) / batch * (24 * WIDTH**2 + 4 * float(lengths.mean()) * WIDTH)
        out[f"batch {batch}"] = {"padded_over_real": round(padded / real, 3),
                                  "ours_over_real": round(grouped / real, 3),
                                 "gflop_a_sentence": round(flops / 1e9, 4)}  # fmt: skip
    for name, kind in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        x, w = torch.randn(4096, WIDTH, dtype=kind), torch.randn(WIDTH, 4 * WIDTH, dtype=kind)
        times = []
        for _ in range(30):
            began = time.perf_counter()
            x @ w
            times.append(time.perf_counter() - began)
        out[f"gflops {name}"] = round(2 * x.numel() * 4 * WIDTH / median(times) / 1e9, 1)
    return out


def jobs(args) -> list[dict]:
    out = []
    if "speed" in args.parts:
        for turn in range(args.rounds):
            for batch in args.batches:
                for precision in ("32-true", "bf16-mixed"):
                    who = ["ours", "theirs", "packed"] + ([] if turn else ["grouped", "cached"])
                    out += [{"part": "speed", "who": w, "batch": batch, "precision": precision, "seed": 0,
                             "round": turn, "steps": STEPS.get(batch, 10)}
                            for w in (who if turn % 2 == 0 else reversed(who))]  # fmt: skip
    if "quality" in args.parts:
        for seed in args.seeds:
            out += [{"part": "quality", "who": w, "batch": 64, "precision": "32-true", "seed": seed,
                     "steps": args.quality_steps} for w in ("ours", "theirs")]  # fmt: skip
    if "memory" in args.parts:
        plan = [("ours", 4096, 64), ("packed", 4096, 64), ("cached", 4096, 64), ("theirs", 256, 0), ("theirs", 512, 0),
                ("theirs", 1024, 0), ("ours", 1024, 0)]  # fmt: skip
        out += [{"part": "memory", "who": w, "batch": b, "precision": "32-true", "seed": 0, "steps": 2}
                | ({"chunk": c} if c else {}) for w, b, c in plan]  # fmt: skip
    return out


def run(args) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    environment |= {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, args.data, args.layers, sorted({0, *args.seeds}))
        held = {"layers": args.layers, "threads": args.threads,
                "floor": floor(folder, args.data, args.layers, args.threads), "rows": []}  # fmt: skip
        for job in jobs(args):
            job |= {"folder": str(folder / str(job["seed"])), "layers": args.layers, "threads": args.threads}
            began = time.perf_counter()
            command = [sys.executable, __file__, "--child", json.dumps(job), "--data", str(args.data)]
            try:
                got = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=args.limit)
                row = json.loads(got.stdout.strip().splitlines()[-1]) if got.returncode == 0 else None
                failed = got.stderr.strip()[-600:]
            except subprocess.TimeoutExpired:
                row, failed = None, f"not done after {args.limit} s"
            kept = ("part", "who", "batch", "precision", "seed", "steps")
            row = row or {k: job[k] for k in kept} | {"failed": failed}
            row |= {k: job[k] for k in ("round", "chunk") if k in job}
            held["rows"].append(row)
            args.out.write_text(json.dumps(held, indent=1))
            said = row.get("speed") or row.get("spearman") or row.get("training_mb") or row["failed"]
            print(*(row[k] for k in ("part", "who", "batch", "precision")), said,
                  f"{time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)  # fmt: skip


def table(path: Path) -> None:
    held = json.loads(path.read_text())
    rows = [r for r in held["rows"] if "failed" not in r]
    speed_table([r for r in rows if r["part"] == "speed"], held["floor"])
    quality_table([r for r in rows if r["part"] == "quality"])
    memory_table([r for r in rows if r["part"] == "memory"])
    for row in held["rows"]:
        if "failed" in row:
            print(f"- failed: {row['who']}, {row['part']}, batch {row['batch']}: {row['failed'].splitlines()[-1]}")


def speed_table(rows: list[dict], floor: dict) -> None:
    if not rows:
        return
    print("| batch | precision | who | sentences/s | whole | over theirs (min–max) | by CPU time | "
          "of the machine's products |\n"
          "|---:|---|---|---:|---:|---:|---:|---:|")  # fmt: skip
    for batch, precision in sorted({(r["batch"], r["precision"]) for r in rows}):
        part = [r for r in rows if (r["batch"], r["precision"]) == (batch, precision)]
        base = {r["round"]: r for r in part if r["who"] == "theirs"}
        for who in ("ours", "packed", *PEERS):
            own = [r for r in part if r["who"] == who]
            if not own:
                continue
            pairs = [(r, base[r["round"]]) for r in own if r["round"] in base]
            ratios = [r["speed"] / b["speed"] for r, b in pairs] or [float("nan")]
            cpu = median([b["cpu_ms"] / r["cpu_ms"] for r, b in pairs] or [float("nan")])
            speed, known = median(r["speed"] for r in own), floor.get(f"batch {batch}")
            share = f"{speed * known['gflop_a_sentence'] / floor[f'gflops {precision}']:.0%}" if known else ""
            print(f"| {batch} | {precision} | {who} | {speed:,.0f} | {median(r['speed_whole'] for r in own):,.0f} | "
                  f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | {cpu:.2f} | {share} |")  # fmt: skip
    print()
    for name, value in floor.items():
        print(f"- {name}: {value}")


def quality_table(rows: list[dict]) -> None:
    got = {(r["who"], r["seed"]): r["spearman"] for r in rows}
    seeds = sorted({s for _, s in got if ("ours", s) in got and ("theirs", s) in got})
    if not seeds:
        return
    print("\n| seed | ours | theirs | difference |\n|---:|---:|---:|---:|")
    differ = [got["ours", s] - got["theirs", s] for s in seeds]
    for s, d in zip(seeds, differ):
        print(f"| {s} | {got['ours', s]:.4f} | {got['theirs', s]:.4f} | {d:+.4f} |")
    half = t.ppf(0.975, len(seeds) - 1) * np.std(differ, ddof=1) / len(seeds) ** 0.5 if len(seeds) > 1 else float("nan")
    means = (np.mean([got[who, s] for s in seeds]) for who in ("ours", "theirs"))
    print(f"| mean | {' | '.join(f'{m:.4f}' for m in means)} | "
          f"{np.mean(differ):+.4f} ±{half:.4f} |")  # fmt: skip


def memory_table(rows: list[dict]) -> None:
    if not rows:
        return
    print("\n| who | batch | rows at a time | MB for training | seconds |\n|---|---:|---:|---:|---:|")
    for r in rows:
        print(f"| {r['who']} | {r['batch']:,} | {r.get('chunk', 'all')} | {r['training_mb']:,.0f} | "
              f"{r['seconds']:.0f} |")  # fmt: skip
    got = {(r["who"], r["batch"], "chunk" in r): r["training_mb"] for r in rows}
    plain = sorted((b, mb) for (who, b, chunked), mb in got.items() if who == "theirs" and not chunked)
    own = got.get(("ours", 4096, True))
    if own and len(plain) > 1:
        slope, start = np.polyfit(*zip(*plain), 1)
        print(f"\n- theirs at 4,096 by a line through {len(plain)} batches: {start + 4096 * slope:,.0f} MB, "
              f"{(start + 4096 * slope) / own:.1f} times ours")  # fmt: skip
    if own and ("cached", 4096, True) in got:
        print(f"- theirs with gradient caching: {got['cached', 4096, True] / own:.2f} times ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", nargs="+", default=["speed", "quality", "memory"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quality-steps", type=int, default=100)
    parser.add_argument("--limit", type=float, default=300, help="seconds of a process")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--child")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.loads(args.child), args.data)))
    elif args.table:
        table(args.table)
    else:
        run(args)
        table(args.out)


if __name__ == "__main__":
    main()
