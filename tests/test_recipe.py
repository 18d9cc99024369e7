import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nearfar
from nearfar import methods
from nearfar import recipe as recipes
from nearfar.recipe import Recipe, from_toml, to_toml
from nearfar.training.optim import Optim
from nearfar.training.schedule import Pace, learning_rate


@settings(deadline=None)  # a busy machine is no fault
@given(
    st.text(max_size=30), st.integers(1, 10**6), st.floats(0, 1e6), st.floats(1e-12, 10), st.floats(0, 1),
    st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 1), st.floats(0, 1)), max_size=4),
)  # fmt: skip
def test_toml_round_trip(source, batch, minutes, lr, flip, pace):
    pace = [*pace, (10**7, 1.0, 0.0)] if pace else []
    r = Recipe(source=source, batch=batch, minutes=minutes, optim=Optim(lr=lr), views={"flip": flip},
               settings={"temperature": 0.3}, pace=tuple(pace))  # fmt: skip
    assert from_toml(to_toml(r)) == r


@pytest.mark.parametrize(("text", "says"), [
    ("methd = 'simclr'", "unknown key 'methd'; did you mean 'method'"),
    ("method = 'simclrr'", "unknown method 'simclrr'; did you mean 'simclr'"),
    ("batch = 'many'", "batch = 'many' is no int"),
    ("batch = 0", "batch = 0 must be at least 1"),
    ("epochs = 1\nsteps = 5", "more than one budget"),
    ("[settings]\ntemprature = 1", "unknown key settings.temprature; did you mean 'temperature'"),
    ("[settings]\ntemperature = -1", "temperature -1.0 must be above 0"),
    ("[views]\nfilp = 1", "unknown key views.filp; did you mean 'flip'"),
    ("[optim]\nlr = 0", "optim.lr = 0.0 must be above 0"),
    ("optim = 3", "optim must be a table"),
    ("method =", "is no TOML"),
    ("precision = 'bf16'", "did you mean 'bf16-mixed'"),
])  # fmt: skip
def test_a_wrong_recipe_is_one_line(text, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        from_toml(text)
    assert "\n" not in str(error.value)


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(i / 1000, 0.1) for i in range(1001)]
    assert rates[0] == 0
    assert max(rates) == rates[100] == 1
    assert rates[1000] == pytest.approx(0)
    assert rates == sorted(rates[:101]) + sorted(rates[101:], reverse=True)


def run_clock(minutes: float, seconds_a_step) -> tuple[Pace, list[float], float]:
    pace, shares, now, step = Pace(minutes=minutes), [], 0.0, 0
    while not pace.done(step):
        shares.append(pace.share(step))
        now += seconds_a_step(step)
        step += 1
        pace.observe(step, now)
        assert step < 10**5
    return pace, shares, now


@pytest.mark.parametrize("speed", [
    lambda step: 0.1, lambda step: 0.5 if step < 20 else 0.05, lambda step: 0.05 + 0.001 * step,
    lambda step: 0.1 + 0.09 * math.sin(step), lambda step: 7.0,
])  # fmt: skip
def test_minutes_end_in_time_with_a_finished_schedule(speed):
    pace, shares, now = run_clock(1.0, speed)
    assert shares == sorted(shares)
    assert now == pytest.approx(60, rel=0.12)
    assert shares[-1] > 0.8
    replay = Pace(segments=[list(s) for s in pace.segments])
    assert [replay.share(i) for i in range(len(shares))] == shares  # bit for bit
    assert replay.done(len(shares))


def test_every_method_has_its_parts():
    assert "simclr" in methods.names()
    for name in methods.names():
        module = methods.module(name)
        assert {"Config", "Method", "SUPERVISED"} <= set(vars(module))
        assert module.__doc__


# who may import whom: a room only what stands to its right
ROOMS = """
cli verbs estimator pretrain places learning downstream transferred embedding triplets exports sheet run pretrained
wordspaces foreign predictors compare leaks robustness gallery build wording recipe transfer training methods report
environment views encoders losses lexical mining text data evaluate dist errors
""".split()  # noqa: SIM905


def test_arrows_run_down_only():
    root = Path(nearfar.__file__).parent
    for path in root.rglob("*.py"):
        room = path.relative_to(root).with_suffix("").parts[0]
        if room in ("__init__", "__main__"):
            continue
        for match in re.finditer(r"^\s*(?:from nearfar\.(\w+)|from nearfar import ([\w, ]+)|import nearfar\.(\w+))",
                                 path.read_text(), re.M):  # fmt: skip
            names = [match[1] or match[3]] if not match[2] else re.findall(r"(\w+)(?: as \w+)?(?:,|$)", match[2])
            for name in names:
                name = name.strip()
                if name in ROOMS and name != room and "TYPE_CHECKING" not in path.read_text()[: match.start()][-120:]:
                    assert ROOMS.index(name) > ROOMS.index(room), f"{path.name} ({room}) imports {name}"


def test_read_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="no such recipe"):
        recipes.read(tmp_path)
