"""A run of texts, from raw text to a judged encoder: on the command line and in Python, killed and gone on with."""

import json

import numpy as np
import pytest
import torch

import nearfar
from nearfar import cli
from nearfar.data import npz

QUICK = {"precision": "32-true", "show": False}


def judged(run) -> dict:
    """The table of a run: cells by embedding."""
    held = json.loads((run.folder / "results.json").read_text())
    return {row["embedding"]: row["cells"] for row in held["evaluation"]["rows"]}


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Four topics in templates: what belongs together shares words, what is drawn does not decide."""
    rng = np.random.default_rng(0)
    words = {"cooking": "bread oven butter soup salt pan", "sailing": "boat wind sail harbour mast rope",
             "money": "bank loan account card interest cash", "music": "guitar song piano choir drum tune"}  # fmt: skip
    texts, labels = [], []
    for i in range(400):
        topic = list(words)[i % 4]
        a, b, c = rng.choice(words[topic].split(), 3, replace=False)
        texts.append(f"the {a} and the {b} are near a {c} number {rng.integers(30)}")
        labels.append(topic)
    path = tmp_path_factory.mktemp("texts") / "topics.csv"
    path.write_text("text,category\n" + "".join(f"{t},{y}\n" for t, y in zip(texts, labels)))
    return path


@pytest.fixture(scope="module")
def run(sentences, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "topics"
    return nearfar.train(sentences, out=out, steps=30, batch=32, encoder="bag", width=32, **QUICK)


def test_a_table_is_text_and_is_judged_beside_what_needs_no_training(run):
    """One command: the method and encoder for text, a tokeniser of its own, a table with all the baselines."""
    assert (run.recipe.method, run.recipe.encoder) == ("simcse", "bag")
    rows = judged(run)
    assert list(rows) == ["nearfar", "untrained encoder", "TF-IDF", "averaged word vectors", "SIF word vectors"]
    assert rows["nearfar"]["linear"]["value"] > 0.9
    assert all(c["low"] <= c["value"] <= c["high"] for row in rows.values() for c in row.values())
    page = (run.folder / "report.html").read_text()
    assert "Nearest neighbours" in page
    assert "harbour" in page
    assert "images" not in page.lower().replace("images_per_second", "")


def test_embeds_lists_and_files(run, sentences, tmp_path, capsys):
    z = run.embed(["the boat and the sail", "the bank and the loan", "the boat and the sail"])
    assert z.shape == (3, 32)
    np.testing.assert_array_equal(z[0], z[2])
    assert cli.main(["embed", str(run.folder), str(sentences), "-o", str(tmp_path / "z.npz")]) == 0
    held = npz.read(tmp_path / "z.npz")
    assert held["features"].shape == (400, 32)
    assert str(held["names"][0]).startswith("the ")
    np.testing.assert_allclose(held["features"][:1], run.embed([str(held["names"][0])]), atol=1e-6)
    capsys.readouterr()
    assert cli.main(["neighbours", str(run.folder), str(sentences), "the boat and the sail"]) == 0
    assert "sailing" in capsys.readouterr().out.splitlines()[0]


def test_scored_pairs_are_judged_by_rank(tmp_path):
    """Trained on scored pairs by CoSENT and judged by Spearman; the file has no header."""
    words, rng = [f"w{i}" for i in range(40)], np.random.default_rng(0)
    rows = []
    for _ in range(300):
        a = rng.choice(words, 6, replace=False)
        k = rng.integers(0, 7)
        b = np.concatenate([a[:k], rng.choice(words, 6 - k)])
        rows.append(f"{' '.join(a)},{' '.join(b)},{5 * k / 6:.2f}\n")
    path = tmp_path / "pairs.csv"
    path.write_text("".join(rows))
    run = nearfar.train(path, out=tmp_path / "run", method="cosent", steps=20, batch=32, width=32, **QUICK)
    rows = judged(run)
    assert rows["nearfar"]["Spearman"]["value"] > 0.6
    assert "Scores against cosines" in (run.folder / "report.html").read_text()


@pytest.mark.parametrize("head", ["", "sentence1,sentence2,score\n"])
def test_scores_may_be_left_out(tmp_path, head):
    """As the line says that refuses a method which takes every pair for a positive."""
    path = tmp_path / "pairs.csv"
    path.write_text(head + "".join(f"word{i} word{i + 1},word{i} word{i + 2},{i % 6}\n" for i in range(60)))
    with pytest.raises(ValueError, match=r"or pass --text\.score none"):
        nearfar.train(path, out=tmp_path / "no", method="simcse", steps=1, batch=8, **QUICK)
    options = nearfar.recipe.TextOptions(score="none")
    run = nearfar.train(path, out=tmp_path / "run", method="simcse", steps=1, batch=8, text=options, evaluate=False,
                        **QUICK)  # fmt: skip
    part = run.open(path, reading={"score": "none"}).train
    assert part.scores is None
    assert part.shape[0] == 2


def test_pairs_find_each_other(tmp_path):
    path = tmp_path / "pairs.tsv"
    rng = np.random.default_rng(0)
    rows = [rng.choice([f"word{i}" for i in range(60)], 4, replace=False) for _ in range(120)]
    path.write_text("question\tanswer\n" + "".join(f"what is {' '.join(r)}\t{' '.join(r[::-1])} it is\n" for r in rows))
    run = nearfar.train(path, out=tmp_path / "run", steps=30, batch=32, encoder="bag", width=32, **QUICK)
    rows = judged(run)
    assert rows["TF-IDF"]["recall@1"]["value"] > 0.9
    assert "recall@1" in rows["nearfar"]


@pytest.mark.parametrize("method", ["simcse", "quick-thoughts", "masked-lm", "simclr"])
def test_goes_on_to_the_bit(method, tmp_path):
    """Stopped after a checkpoint and gone on with: the same weights as never stopped, dropout and masks included."""
    common = {"method": method, "batch": 16, "encoder": "transformer", "width": 16, "seed": 1, "evaluate": False}
    common |= QUICK
    options = nearfar.recipe.TextOptions(layers=1, heads=2, vocabulary=500, max_length=16)
    whole = nearfar.train("pydoc", out=tmp_path / "whole", steps=8, text=options, **common)
    part = nearfar.train("pydoc", out=tmp_path / "part", steps=8, text=options, checkpoint_minutes=1e-9, keep=9,
                         **common)  # fmt: skip
    steps = sorted((part.folder / "checkpoints").iterdir())
    assert len(steps) > 2
    for path in steps[2:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    again = nearfar.train(resume=part.folder, show=False, evaluate=False)
    for (name, a), b in zip(whole.method.state_dict().items(), again.method.state_dict().values()):
        assert torch.equal(a, b), name


def test_a_run_without_its_tokeniser_says_so(run, tmp_path):
    import shutil

    there = tmp_path / "copy"
    shutil.copytree(run.folder, there)
    (there / "tokenizer.json").write_text(run.input.tokenizer.to_json().replace("boat", "goat"))
    with pytest.raises(ValueError, match=r"is not the tokeniser"):
        nearfar.load(there).embed(["a boat"])
    (there / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        nearfar.load(there).embed(["a boat"])


@pytest.mark.parametrize(("source", "changes", "said"), [
    ("topics", {"method": "cosent"}, "no scores"),
    ("topics", {"method": "cpc"}, "images alone"),
    ("topics", {"encoder": "cnn"}, "takes images"),
    ("digits", {"method": "simcse"}, "text alone"),
    ("topics", {"batch": 9999}, "training texts"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line(sentences, tmp_path, source, changes, said):
    with pytest.raises(ValueError, match=said) as error:
        nearfar.train(sentences if source == "topics" else source, out=tmp_path / "run", steps=1, **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_new_script_is_said(run, tmp_path):
    path, said = tmp_path / "greek.txt", []
    path.write_text("καλημέρα κόσμε\nτι κάνεις σήμερα\nπάμε στη θάλασσα\n")
    run.open(path, said.append)
    assert "unknown to the tokeniser" in said[0]


def test_hard_negatives_are_mined_and_learnt_from(tmp_path, capsys):
    """Triplets of a run's own mistakes: never the positive, nor one of the same anchor; SimCSE learns from them."""
    rng = np.random.default_rng(1)
    words = [f"word{i}" for i in range(30)]
    drawn = [rng.choice(words, 3, replace=False) for _ in range(90)]
    pairs = [(" ".join(a), " ".join([*a[:2], rng.choice(words)])) for a in drawn]
    pairs += [(pairs[0][0], "another good answer")]
    run = nearfar.train(pairs, out=tmp_path / "run", steps=5, batch=16, encoder="bag", width=16, **QUICK)
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"anchor": a, "positive": p}) + "\n" for a, p in pairs))
    assert cli.main(["mine", str(run.folder), str(path), "-o", str(tmp_path / "t.jsonl"), "--count", "2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert len(rows) > 90
    of = {}
    for a, p in pairs:
        of.setdefault(a, set()).add(p)
    assert not any(r["negative"] in of[r["anchor"]] for r in rows)
    hard = nearfar.train(tmp_path / "t.jsonl", out=tmp_path / "hard", steps=5, batch=8, width=16, **QUICK)
    assert hard.about["images"] < len(rows)
    with pytest.raises(ValueError, match="for a positive"):
        nearfar.train(tmp_path / "t.jsonl", out=tmp_path / "no", steps=1, batch=16, method="simclr", **QUICK)


def test_a_list_of_texts_fits_a_pipeline():
    """scikit-learn's way: fit on texts, transform texts."""
    texts = [f"{kind} {i} of the {kind}s" for kind in ("boat", "bank") for i in range(40)]
    made = nearfar.Embedder(method="simcse", width=16, epochs=3, batch=20, text={"vocabulary": 100}).fit(texts)
    z = made.transform(["boat 3 of the boats", "a loan"])
    assert z.shape == (2, 16)
    assert made.recipe_.encoder == "bag"
    np.testing.assert_array_equal(z, made.transform(["boat 3 of the boats", "a loan"]))


def test_views_of_texts_are_printed(capsys):
    assert cli.main(["views", "pydoc", "--rows", "2", "--large", "2", "--text.delete", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(len(view.split()) < len(lines[0].split()) for view in lines[1:3])


def test_settings_change_what_they_name(sentences, tmp_path):
    """The others stay as the method's preset has them."""
    run = nearfar.train(sentences, out=tmp_path / "run", steps=1, batch=16, width=8, settings={"symmetric": True},
                        evaluate=False, **QUICK)  # fmt: skip
    assert run.recipe.settings["symmetric"]
    assert run.recipe.settings["head"] == 0


def test_a_model_of_another_origin_is_judged_on_text(tmp_path, monkeypatch, capsys):
    """A folder of transformers', beside its architecture with fresh weights and what counts alone give."""
    transformers = pytest.importorskip("transformers")
    words = [f"word{i}" for i in range(40)]
    run = nearfar.train([f"{a} {b}" for a in words for b in words[:5]], out=tmp_path / "run", steps=1, batch=16,
                        evaluate=False, **QUICK)  # fmt: skip
    folder = tmp_path / "bert"
    config = transformers.BertConfig(vocab_size=run.input.tokenizer.size, hidden_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, intermediate_size=32)  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(run.input.tokenizer.to_json())
    rng = np.random.default_rng(0)
    rows = [(rng.choice(words, 4), rng.choice(words, 4), rng.integers(0, 6)) for _ in range(60)]
    lines = [f"{' '.join(a)},{' '.join(b)},{s}\n" for a, b, s in rows]
    (tmp_path / "pairs.csv").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", f"transformers:{folder}", "pairs.csv"]) == 0
    held = json.loads((tmp_path / "judged" / "transformers-bert-on-pairs" / "results.json").read_text())
    names = [row["embedding"] for row in held["evaluation"]["rows"]]
    assert names[:3] == ["transformers:bert", "untrained encoder", "TF-IDF"]
    assert "Spearman" in capsys.readouterr().out


def test_training_starts_from_another_run(sentences, run, tmp_path):
    """Its encoder and its tokeniser, with another method; the untrained encoder stays one of fresh weights."""
    held = run.encoder.state_dict()
    from nearfar.training.optim import Optim

    still = nearfar.train(sentences, out=tmp_path / "still", init=str(run.folder), method="moco", steps=1, batch=16,
                          encoder="bag", width=32, optim=Optim(lr=1e-12), evaluate=False, **QUICK)  # fmt: skip
    assert still.input.tokenizer.to_json() == run.input.tokenizer.to_json()
    torch.testing.assert_close(still.encoder.state_dict()["embedding.weight"], held["embedding.weight"])
    fresh = still._fresh().encoder.state_dict()["embedding.weight"]
    assert not torch.allclose(fresh, held["embedding.weight"], atol=1e-3)
    with pytest.raises(ValueError, match="its encoder is not this one"):
        nearfar.train(sentences, out=tmp_path / "no", init=str(run.folder), encoder="bag", width=16, steps=1, **QUICK)
