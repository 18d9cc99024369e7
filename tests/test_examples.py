import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_example(path, tmp_path):
    said = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert said.returncode == 0, said.stderr
    assert said.stdout


def test_docstring_examples():
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--doctest-modules", "nearfar/losses",
         "nearfar/views", "nearfar/methods", "nearfar/recipe.py", "nearfar/training", "nearfar/encoders",
         "nearfar/evaluate", "nearfar/estimator.py", "nearfar/text", "nearfar/lexical.py", "nearfar/mining.py"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert said.returncode == 0, said.stdout[-2000:]
