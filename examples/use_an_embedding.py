"""Train on arrays, embed new images, and find the nearest: the whole way in a dozen lines.

    python examples/use_an_embedding.py
"""

import tempfile
from pathlib import Path

from sklearn.datasets import load_digits

import nearfar
from nearfar.evaluate import neighbours

images, labels = (load_digits()[key] for key in ("images", "target"))
with tempfile.TemporaryDirectory() as folder:
    run = nearfar.train((images[:1500], labels[:1500]), out=Path(folder) / "run", steps=60, width=8, batch=128)
    bank, new = run.embed(images[:1500]), run.embed(images[1500:])  # (1500, d), (297, d)
    index, cosine = neighbours(new, bank, k=5)
    share = (labels[:1500][index] == labels[1500:, None]).mean()
    print(f"{share:.1%} of the five nearest neighbours are the same digit")
    assert share > 0.7
