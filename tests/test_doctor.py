"""The doctor: signs are their definitions, rules see what they should and no more, broken runs are told why."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import nearfar
from nearfar import build, evaluate
from nearfar import recipe as recipes
from nearfar.data import open_source
from nearfar.evaluate import geometry
from nearfar.learning import Hooks, fresh, learn
from nearfar.training import doctor
from nearfar.training.doctor import Doctor, Facts
from nearfar.training.optim import Optim
from nearfar.training.watch import OnlineKNN, image_spread, similarities, spread

# ---------------------------------------------------------------- the effective rank of endless rows


def spectra(d: int) -> dict[str, np.ndarray]:
    k = np.arange(1, d + 1)
    return {"white": np.ones(d), "1/k": 1.0 / k, "1/k²": 1.0 / k**2, "twenty large": np.where(k <= 20, 1.0, 1e-3),
            "exponential": np.exp(-k / 20)}  # fmt: skip


@pytest.mark.parametrize("n", [256, 512])
@pytest.mark.parametrize("d", [128, 512])
def test_the_corrected_rank_is_nearer_to_the_truth(n, d):
    rng = np.random.default_rng(n + d)
    for name, values in spectra(d).items():
        p = np.sqrt(values) / np.sqrt(values).sum()
        truth = math.exp(-(p * np.log(p)).sum())
        draws = [rng.normal(size=(n, d)) * np.sqrt(values) for _ in range(2)]
        raw = np.mean([geometry.effective_rank(z) for z in draws])
        corrected = np.mean([geometry.effective_rank(z, corrected=True) for z in draws])
        assert abs(corrected - truth) < abs(raw - truth) / 2, (name, truth, raw, corrected)
        assert corrected == pytest.approx(truth, rel=0.06), name


def test_the_corrected_rank_at_its_edges():
    rng = np.random.default_rng(0)
    rank = lambda z: geometry.effective_rank(z, corrected=True)  # noqa: E731
    assert rank(np.ones((9, 4))) == 0.0
    assert rank(rng.normal(size=(300, 1)) @ rng.normal(size=(1, 64))) == pytest.approx(1, abs=0.01)
    assert rank(rng.normal(size=(40, 3)) @ rng.normal(size=(3, 64))) == pytest.approx(3, rel=0.1)
    z = rng.normal(size=(50, 200))
    assert rank(z) <= 200
    assert rank(7 * z + 3) == pytest.approx(rank(z), rel=1e-6)  # neither scale nor place matter
    z[:, 100:] = 5.0  # dead dimensions are none
    assert 80 < rank(z) <= 100
    large = rng.normal(size=(20_000, 64)) / np.arange(1, 65)
    assert rank(large) == pytest.approx(geometry.effective_rank(large), rel=0.005)  # nothing left to correct


# ---------------------------------------------------------------- signs


def test_signs_are_their_definitions():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 30, 6)).astype(np.float32)
    z, groups = torch.tensor(np.concatenate([a, b])), torch.arange(30).repeat(2)
    got = similarities(z, groups)
    assert got["alignment"] == pytest.approx(geometry.alignment(a, b), rel=1e-5)
    assert got["alignment"] == pytest.approx(2 - 2 * got["positive"])
    u = F.normalize(z, dim=1).numpy().astype(np.float64)
    pairs = [(i, j) for i in range(60) for j in range(60) if i % 30 != j % 30]
    assert got["negative"] == pytest.approx(np.mean([u[i] @ u[j] for i, j in pairs]), abs=1e-6)
    kernel = [np.exp(-2 * ((u[i] - u[j]) ** 2).sum()) for i, j in pairs]
    assert got["uniformity"] == pytest.approx(np.log(np.mean(kernel)), rel=1e-5)
    assert all(math.isnan(v) for k, v in similarities(z[:30], groups[:30]).items() if k in ("positive", "alignment"))
    assert all(math.isnan(v) for k, v in similarities(z, 0 * groups).items() if k in ("negative", "uniformity"))


def test_spread_is_one_where_even_and_zero_where_collapsed():
    g = torch.Generator().manual_seed(0)
    even = torch.randn(4000, 64, generator=g)
    assert spread(even)[0] == pytest.approx(1, abs=0.01)
    assert spread(even)[1] == pytest.approx(1, abs=0.05)
    assert spread(even * 0 + even[:1])[0] == pytest.approx(0, abs=1e-6)
    even[:, :8] *= 0.01  # some dimensions carry nothing
    assert spread(even)[1] < 0.05
    assert spread(even)[0] > 0.8


def test_image_spread():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    assert image_spread(x) == pytest.approx(1, abs=0.05)
    assert image_spread(np.repeat(x[:1], 32, 0)) == 0.0
    assert image_spread(np.full((32, 8, 8, 1), 7, np.uint8)) == 0.0
    assert math.isnan(image_spread(["a", "b"]))


def test_the_online_knn_is_the_judge():
    rng = np.random.default_rng(0)
    y, y_test = rng.integers(0, 4, 300), rng.integers(0, 4, 80)
    z, z_test = (rng.normal(size=(len(t), 8)).astype(np.float32) + 0.7 * np.eye(8)[t] for t in (y, y_test))
    online = OnlineKNN(lambda: z_test, y_test, size=300, points=4)
    shown = []
    for at in range(0, 300, 30):
        rows = torch.tensor(np.concatenate([z[at : at + 30], 0 * z[at : at + 30]]), dtype=torch.float32)
        online.keep(rows, torch.tensor(y[at : at + 30]))  # of two views the first is kept
        shown.append(online.judge(at / 300, last=at == 270))
    assert sum(map(bool, shown)) == 4
    theirs = evaluate.knn(z, y, z_test, y_test, list("abcd")).result.value
    assert shown[-1]["knn_online"] == pytest.approx(theirs)
    for _ in range(20):
        online.keep(torch.zeros(30, 8), torch.zeros(30, dtype=torch.long))
    assert sum(len(labels) for _, labels in online._kept) == 300  # of the last steps alone


# ---------------------------------------------------------------- rules, on rows made by hand


def healthy(steps: int = 300, **changed) -> list[dict]:
    """The rows of a run as it should be."""
    return [{"step": s, "share": s / steps, "loss": 3 + 3 * 0.98**s, "chance": 6.2, "gradient": 2.0, "positive": 0.7,
             "weight_growth": 1 + s / steps, "image_spread": 0.9, "negative": 0.1, "spread": 0.9, "spread_least": 0.5,
             "spread_features": 0.5, "effective_rank": 90.0, "effective_rank_projections": 40.0} | changed
            for s in [*range(1, 11), *range(11, steps, 10)]]  # fmt: skip


def seen_by(rows: list[dict], **facts) -> Doctor:
    it = Doctor(Facts(**facts))
    for row in rows:
        it.see(row)
    return it


def after(step: int, rows: list[dict], **changed) -> list[dict]:
    return [row | changed if row["step"] >= step else row for row in rows]


PLENTY = {"prototypes": 512, "epsilon": 0.05}


@pytest.mark.parametrize(("name", "rows", "facts", "step", "words"), [
    ("not_finite", [*healthy()[:20], healthy()[20] | {"loss": math.nan, "broken_at": 104}], {}, 111,
     ["stopped being finite at step 104", "learning rate", "--optim.clip"]),
    ("not_finite", [healthy()[0] | {"loss": math.nan, "broken_at": 1}], {}, 1, ["no weight had moved yet", "images"]),
    ("not_finite", [*healthy()[:20], healthy()[20] | {"loss": math.nan, "broken_at": 104}], {"precision": "16-mixed"},
     111, ["float16", "bf16"]),
    ("equal_images", healthy(image_spread=0.001), {}, 1, ["equal", "nearfar views"]),
    ("temperature", healthy(loss=2600.0), {"settings": {"temperature": 1e-4}}, 1,
     ["419 times", "temperature = 0.0001", "0.1"]),
    ("temperature", healthy(loss=2600.0), {"settings": {"student_temperature": 1e-4, "teacher_temperature": 0.04}}, 1,
     ["student_temperature = 0.0001"]),
    ("learning_rate", after(101, healthy(), weight_growth=9.0), {"optim": Optim(lr=0.3)}, 101,
     ["grown 9-fold", "0.3 with adamw", "to 0.03"]),
    ("divergence", after(101, healthy(), loss=40.0), {}, 111, ["risen to 40", "learning rate"]),
    ("one_prototype", after(51, healthy(prototype_usage=0.4), prototype_usage=1.1 / 512), {"settings": PLENTY}, 61,
     ["all pictures are given to one prototype", "epsilon"]),
    ("one_prototype", after(51, healthy(prototype_usage=0.4), prototype_usage=1.1 / 512),
     {"settings": {"prototypes": 512, "centring": False}}, 61, ["centring is off", "centring = true"]),
    ("collapse", after(31, healthy(), spread=0.01, negative=0.9999, positive=1.0),
     {"settings": {"temperature": 0.1}}, 41, ["one point", "temperature = 0.1"]),
    ("few_directions", after(31, healthy(), effective_rank_projections=1.4),
     {"settings": {"stop_gradient": False, "predictor_hidden": 64}}, 41, ["1.4", "was 40", "stop_gradient = true"]),
    ("few_directions", after(31, healthy(), effective_rank=1.2), {"settings": {"predictor_hidden": 64}}, 41,
     ["features", "predictor"]),
    ("few_directions", after(31, healthy(), effective_rank=1.2), {"settings": {"variance": 0.1}}, 41,
     ["variance = 0.1"]),
    ("at_chance", healthy(loss=6.201), {"settings": {"temperature": 0.5}}, 121, ["nothing is being learnt", "6.201"]),
    ("at_chance", healthy(loss=6.201, negative=0.999), {"settings": {"margin": 0.2}}, 121, ["hard mining"]),
    ("no_gradient", after(61, healthy(), gradient=0.0), {}, 81, ["no gradient is left"]),
])  # fmt: skip
def test_what_is_wrong_is_found_at_its_step(name, rows, facts, step, words):
    found = seen_by(rows, **facts).findings
    assert [(f.name, f.step) for f in found] == [(name, step)]
    assert found[0].text.startswith(f"step {step}: ")
    assert "\n" not in found[0].text
    for word in words:
        assert word in found[0].text


@pytest.mark.parametrize(("rows", "facts"), [
    (healthy(), {}),
    (healthy(20_000), {"settings": {"temperature": 0.1}}),
    (healthy(loss=2600.0), {"settings": {"temperature": 0.1}}),  # some losses begin far above: no sharp temperature
    (healthy(prototype_usage=0.05), {"settings": PLENTY}),
    (healthy(spread=0.09, negative=0.991, positive=0.993), {}),  # margins between lengths, not angles
    (healthy(effective_rank_projections=1.0, effective_rank=2.0), {"classes": 2}),  # two classes span a line
    (healthy(loss=0.0), {}),
    ([{"step": s, "loss": -s / 100, "share": s / 100} for s in range(1, 100, 10)], {}),  # a loss below 0, no signs
    (healthy(60, loss=6.201), {}),  # too short to tell
    ([*healthy()[:16], healthy()[16] | {"loss": 40.0}, *healthy()[17:]], {}),  # one bad batch
])  # fmt: skip
def test_what_is_well_is_left_alone(rows, facts):
    assert not seen_by(rows, **facts).findings


def test_each_is_said_once_and_consequences_are_not():
    told = []
    it = Doctor(Facts(settings={"temperature": 0.1}), tell=told.append)
    for row in healthy(image_spread=0.0, spread=0.0, negative=1.0, loss=6.2):
        it.see(row)
    assert [f.name for f in told] == ["equal_images"]
    it = seen_by([*after(31, healthy(), effective_rank=1.0), healthy()[-1] | {"loss": math.nan, "broken_at": 301}])
    assert [f.name for f in it.findings] == ["few_directions", "not_finite"]  # a new cause is said


def test_the_doctor_forgets_little_of_a_long_run():
    it = seen_by(healthy(20_000))
    assert len(it._rows) <= doctor._KEPT
    assert [row["step"] for row in it._rows][:10] == list(range(1, 11))
    assert not it.findings


# ---------------------------------------------------------------- real runs


# name: (method, steps, settings, optim); each is broken by its own change alone, which is said second
BROKEN = {
    "few_directions": ("simsiam", 150, {}, {"lr": 0.01}, {"stop_gradient": False}, {}),
    "one_prototype": ("dino", 150, {"momentum": 0.9}, {}, {"centring": False}, {}),
    "temperature": ("simclr", 30, {}, {}, {"temperature": 1e-4}, {}),
    "learning_rate": ("simclr", 30, {}, {}, {}, {"lr": 0.3}),
    "equal_images": ("simclr", 30, {}, {}, {}, {}),
}
WORDS = {"few_directions": "is not stopped", "one_prototype": "centring", "temperature": "= 0.0001 is too small",
         "learning_rate": "0.3 with adamw", "equal_images": "the source"}  # fmt: skip


def trained(x: np.ndarray, y: np.ndarray, method: str, steps: int, settings: dict, optim: dict, held_out=True):
    """A few steps on digits; what was learnt, the rows, and what was told."""
    train, test = (open_source((x[part], y[part])).train for part in (slice(1200), slice(1200, None)))
    recipe = recipes.of(method, source="digits", steps=steps, width=8, batch=128)
    recipe = recipe.changed(settings=recipe.settings | settings, optim=dataclasses.replace(recipe.optim, **optim))
    recipe = build.resolve(recipe, train)
    rows, told = [], []
    learnt = learn(train, recipe, fresh(train, recipe), Hooks(rows.append, False, tell=told.append),
                   held_out=test if held_out else None)  # fmt: skip
    assert learnt.findings == told
    return learnt, rows, told


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_broken_on_purpose_is_told_why(name, digits):
    method, steps, settings, optim, broken, rate = BROKEN[name]
    x, y = digits
    x = np.repeat(x[:1], len(x), 0) if name == "equal_images" else x
    _, rows, told = trained(x, y, method, steps, settings | broken, optim | rate)
    assert [f.name for f in told] == [name]
    assert WORDS[name] in told[0].cause
    assert told[0].step in {row["step"] for row in rows}


@pytest.mark.parametrize("name", ["few_directions", "one_prototype", "temperature"])
def test_the_same_run_unbroken_is_left_alone(name, digits):
    _, rows, told = trained(*digits, *BROKEN[name][:4])
    assert told == []
    knn = [row["knn_online"] for row in rows if "knn_online" in row]
    assert len(knn) >= 4
    assert knn[-1] > 0.4
    assert all(math.isfinite(rows[-1][sign]) for sign in (
        "positive", "negative", "alignment", "uniformity", "spread", "effective_rank", "gradient"))  # fmt: skip


def test_watching_changes_nothing(digits):
    """Held-out images leave no trace in the weights."""
    one, two = (trained(*digits, "simclr", 25, {}, {}, held)[0].method.state_dict() for held in (True, False))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_loss_that_is_nan_ends_the_run_with_the_diagnosis(digits, tmp_path):
    x, y = digits
    with pytest.raises(ValueError, match=r"stopped being finite at step \d+\. Likely cause: the learning") as told:
        nearfar.train((x[:400], y[:400]), out=tmp_path / "r", steps=40, batch=64, width=4, evaluate=False,
                      optim=Optim(lr=1e30, warmup=0.0))  # fmt: skip
    held = [json.loads(line) for line in (tmp_path / "r" / "doctor.jsonl").read_text().splitlines()]
    assert held[-1]["name"] == "not_finite"
    assert held[-1]["cause"] in str(told.value)
    assert "stopped being finite" in (tmp_path / "r" / "report.html").read_text()


def test_the_page_says_what_was_found(small_run, digits, tmp_path):
    assert (small_run.folder / "doctor.jsonl").read_text() == ""
    assert "Nothing was found" in (small_run.folder / "report.html").read_text()
    said = []
    run = nearfar.train(np.repeat(digits[0][:1], 100, 0), out=tmp_path / "r", steps=12, batch=32, width=4,
                        say=said.append, evaluate=False)  # fmt: skip
    assert any("all but equal" in line for line in said)
    page = (run.folder / "report.html").read_text()
    assert "Step 1: the images of a batch are all but equal" in page
    assert "What to do: look at the source" in page
    (run.folder / "doctor.jsonl").unlink()
    assert "No doctor watched" in run.report().read_text()
