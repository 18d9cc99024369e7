"""Do exports of text encoders give the vectors of the run? The largest difference of any number, by encoder and form.

    python benchmarks/text_export.py --data "$NEARFAR_DATA"

Runs of 30 steps on STS-B's training sentences with the default sizes; the 2,758 sentences of its test part, in batches
of 64, through `Run.embed`, `SentenceTransformer` and onnxruntime.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import nearfar
from nearfar.text import TextOptions, open_texts

KINDS = {
    "transformer, WordPiece, with a prefix": ("transformer", "simcse", TextOptions(prefix="query: ")),
    "transformer, 2 layers, BPE, cls": ("transformer", "simcse", TextOptions(layers=2, tokenizer="bpe", pooling="cls")),
    "transformer, 2 layers, causal": ("transformer", "next-token", TextOptions(layers=2)),
    "bag": ("bag", "simcse", TextOptions()),
    "gru": ("gru", "simcse", TextOptions()),
    "lstm, attention": ("lstm", "simcse", TextOptions(pooling="attention")),
}


def by_onnx(path: Path, texts: list[str]) -> np.ndarray:
    import onnxruntime
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(path.with_suffix(".tokenizer.json")))
    session, out = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]), []
    for at in range(0, len(texts), 64):
        rows = tokenizer.encode_batch(texts[at : at + 64])
        given = {"input_ids": np.array([r.ids for r in rows]),
                 "attention_mask": np.array([r.attention_mask for r in rows])}  # fmt: skip
        out.append(session.run(None, given)[0])
    return np.concatenate(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data / "text" / "stsb"
    train, test = (list(open_texts(data / f"{part}.csv").train.every()) for part in ("train", "test"))
    print("| encoder | max abs z | sentence-transformers | onnxruntime |\n|---|---|---|---|")
    for name, (encoder, method, options) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            run = nearfar.train(train, out=f"{folder}/run", method=method, encoder=encoder, steps=30, batch=64,
                                text=options, evaluate=False, show=False)  # fmt: skip
            z, cells = run.embed(test), []
            try:
                from sentence_transformers import SentenceTransformer

                nearfar.export(run, f"{folder}/st")
                theirs = SentenceTransformer(f"{folder}/st", device="cpu").encode(test, batch_size=64)
                cells.append(f"{np.abs(theirs - z).max():.0e}")
            except ValueError:  # it has no such encoder
                cells.append("")
            nearfar.export(run, f"{folder}/e.onnx")
            theirs = by_onnx(Path(folder) / "e.onnx", [options.prefix + text for text in test])
            print(f"| {name} | {np.abs(z).max():.2f} | {' | '.join([*cells, f'{np.abs(theirs - z).max():.0e}'])} |")


if __name__ == "__main__":
    main()
