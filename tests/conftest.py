import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tests' own, for the processes they start too."""
    os.environ["NEARFAR_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return Path(os.environ["NEARFAR_CACHE"])


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data sets, from NEARFAR_DATA or beside the project; skipped where it is absent."""
    folder = Path(os.environ.get("NEARFAR_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set NEARFAR_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    held = load_digits()
    return np.round(held.images * (255 / 16)).astype(np.uint8), held.target


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, digits):
    """A run on 300 digits, a few steps: enough to use, not to judge."""
    import nearfar

    folder = tmp_path_factory.mktemp("runs") / "small"
    x, y = digits
    np.savez(folder.parent / "d.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:400], y_test=y[300:400])
    return nearfar.train(folder.parent / "d.npz", out=folder, steps=30, batch=64, width=8, show=False)
