"""Few labels: contrast on all pictures first, or cross-entropy on the labelled ones alone?

    python examples/few_labels.py

One labelled digit a class. Cross-entropy sees those ten pictures, with the same views, encoder and steps; SimCLR
sees all 1,200 without labels, and a linear probe then reads the ten. Both are judged on 597 digits that nothing has
seen.
"""

import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import nearfar
from nearfar.evaluate.probes import draw_labels

held = load_digits()
images, labels = np.round(held.images * (255 / 16)).astype(np.uint8), held.target
few = draw_labels(labels[:1200], 1, draw=0)  # (10,) rows
common = {"steps": 300, "width": 8, "holdout": 0, "evaluate": False}

with tempfile.TemporaryDirectory() as folder:
    out = Path(folder)
    contrast = nearfar.train(images[:1200], method="simclr", out=out / "contrast", batch=128, **common)
    plain = nearfar.train((images[few], labels[few]), method="supervised", out=out / "plain", batch=10, **common)
    found = {}
    for name, run in (("contrast, then a probe", contrast), ("cross-entropy alone", plain)):
        probe = LogisticRegression(C=10, max_iter=1000).fit(run.embed(images[few]), labels[few])
        found[name] = probe.score(run.embed(images[1200:]), labels[1200:])
        print(f"{name:24} {found[name]:.3f}")
    assert found["contrast, then a probe"] > found["cross-entropy alone"]
