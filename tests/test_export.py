"""What a run is exported as gives the same vectors: by sentence-transformers, transformers and onnxruntime."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open

import nearfar
from nearfar import cli, exports
from nearfar.errors import UserError
from nearfar.exports.card import shown_name
from nearfar.text.options import TextOptions
from nearfar.text.tokenizer import Tokenizer

WORDS = "boat sail wind harbour bank loan cash oven salt soup choir drum tune song".split()  # noqa: SIM905
TEXTS = [f"the {a} and the {b} are near, number {i}" for i, (a, b) in enumerate(zip(WORDS * 4, WORDS[3:] * 5))]
HARD = ["a boat", "boat " * 200 + "wind", "日本語 ünïcode 𓀀 \u200b zero", "[SEP] a [MASK] boat [PAD]", ".", "THE Boat",
        "a boat\u2029and\n\ta sail ", "x" * 300, "sail " * 12, "sail " * 16]  # fmt: skip
SMALL = {"vocabulary": 320, "max_length": 16, "layers": 1, "heads": 2}
KINDS = {
    "mean": {"layers": 2, "prefix": "query: ", "second_prefix": "passage: "}, "cls": {"pooling": "cls"},
    "max": {"pooling": "max"}, "last": {"pooling": "last", "tokenizer": "bpe"}, "attention": {"pooling": "attention"},
    "bag": {"layers": 0, "heads": 0, "prefix": "query: "},
    "gru": {"layers": 2, "heads": 0}, "lstm": {"layers": 1, "heads": 0, "pooling": "attention"},
    "bert": {"layers": 0, "heads": 0}, "roberta": {"layers": 0, "heads": 0, "pooling": "cls"},
}  # fmt: skip
FOLDERS = ("mean", "cls", "max", "last", "bag", "roberta")
GRAPHS = ("mean", "bag", "gru", "lstm", "roberta")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a kind, trained for three steps when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def of(kind: str):
        if kind not in made:
            made[kind] = trained(kind, folder)
        return made[kind]

    return of


def trained(kind: str, folder):
    encoder = kind if kind in ("bag", "gru", "lstm") else "transformer"
    width = {"width": 32}
    if kind in ("bert", "roberta"):
        encoder, width = hub_model(kind, folder / f"{kind}-hub"), {}
    settings = {"matryoshka": "8,16", "head": 0} if kind == "mean" else {}
    return nearfar.train(TEXTS, out=folder / kind, steps=3, batch=16, encoder=encoder, settings=settings, show=False,
                         text=TextOptions(**SMALL | KINDS[kind]), precision="32-true", evaluate=kind == "mean",
                         **width)  # fmt: skip


def hub_model(kind: str, folder) -> str:
    """A tiny model of transformers in a folder, with weights of chance."""
    transformers = pytest.importorskip("transformers")
    text = json.loads(Tokenizer.train(TEXTS, vocabulary=200).to_json())
    if kind == "roberta":  # positions begin after the padding token's id
        text["added_tokens"].append(text["added_tokens"][0] | {"id": 200, "content": "<pad>"})
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(text))
    kinds = {"bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}
    kinds[kind](vocab_size=201, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                max_position_embeddings=300, pad_token_id=200).save_pretrained(folder)  # fmt: skip
    return f"transformers:{folder}@random"


def test_a_tokeniser_that_transformers_would_change_is_found(tmp_path):
    transformers = pytest.importorskip("transformers")
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "tokenizer.json").write_text(Tokenizer.train(TEXTS, vocabulary=200).to_json())
    transformers.Qwen2Config(vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                             num_key_value_heads=2, intermediate_size=64).save_pretrained(hub)  # fmt: skip
    run = nearfar.train(TEXTS, out=tmp_path / "run", steps=1, batch=16, encoder=f"transformers:{hub}@random",
                        show=False, evaluate=False, text=TextOptions(max_length=16), precision="32-true")  # fmt: skip
    with pytest.raises(UserError, match="gives a qwen2 model a tokeniser of its own; give OUT.onnx"):
        nearfar.export(run, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["hub", "run"]


@pytest.fixture
def folder_of(run, tmp_path):
    def of(kind: str):
        return exports.export(run(kind), tmp_path / kind)[0]

    return of


@pytest.mark.parametrize("kind", FOLDERS)
def test_sentence_transformers_gives_the_same(kind, run, folder_of, capfd):
    """Texts longer than the encoder reads, of other scripts, that spell special tokens; batches of mixed lengths."""
    st = pytest.importorskip("sentence_transformers")
    run(kind)
    capfd.readouterr()
    path = folder_of(kind)
    assert "".join(capfd.readouterr()) == ""
    model = st.SentenceTransformer(str(path), device="cpu")
    wanted = run(kind).embed(HARD)
    np.testing.assert_allclose(model.encode(HARD, batch_size=4), wanted, atol=1e-5)
    np.testing.assert_allclose(model.encode(HARD[:1]), wanted[:1], atol=1e-5)
    assert model.similarity_fn_name == "cosine"
    assert model.get_embedding_dimension() == 32
    held = "".join(p.read_text() for p in path.rglob("*.json")) + (path / "README.md").read_text()
    assert str(path.parent) not in held
    assert str(run(kind).folder.parent) not in held
    assert not list(path.parent.glob(".*"))


def test_prompts_and_widths(run, folder_of):
    st = pytest.importorskip("sentence_transformers")
    path, own = folder_of("mean"), run("mean")
    model = st.SentenceTransformer(str(path), device="cpu")
    both = own.open([(t, t) for t in HARD]).train.read(np.arange(len(HARD)))  # (N, 2, L)
    with torch.no_grad():
        first, second = (own.encoder(torch.as_tensor(both[:, s]).long()).numpy() for s in (0, 1))
    np.testing.assert_allclose(model.encode_query(HARD), first, atol=1e-5)
    np.testing.assert_allclose(model.encode_document(HARD), second, atol=1e-5)
    cut = st.SentenceTransformer(str(path), device="cpu", truncate_dim=8).encode(HARD)
    np.testing.assert_allclose(cut, first[:, :8], atol=1e-5)
    card = (path / "README.md").read_text()
    assert "the first 8,16 numbers" in card
    assert '"passage: "' in card


@pytest.mark.parametrize("kind", ["mean", "bert"])
def test_transformers_alone_gives_the_same(kind, run, folder_of):
    transformers = pytest.importorskip("transformers")
    path = folder_of(kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
    model, info = transformers.AutoModel.from_pretrained(str(path), output_loading_info=True)
    assert all(kind == "bert" and "pooler" in key for key in info["missing_keys"])  # which a run has not
    assert not info["unexpected_keys"]
    prefix = run(kind).recipe.text.prefix
    x = tokenizer([prefix + t for t in HARD], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        h, mask = model.eval()(**x).last_hidden_state, x["attention_mask"][..., None]
    np.testing.assert_allclose((h * mask).sum(1) / mask.sum(1), run(kind).embed(HARD), atol=1e-5)


def test_bert_takes_weights_one_to_one(run):
    """Every tensor of ours stands in BERT's, and the token vectors are the same, of a text alone and of all layers."""
    transformers = pytest.importorskip("transformers")
    from nearfar.encoders.bert_names import bert_config, to_bert_state_dict

    encoder = run("cls").encoder
    config = bert_config(encoder)
    bert = transformers.BertModel(transformers.BertConfig(**{k: v for k, v in config.items() if k != "architectures"}))
    bert.load_state_dict(to_bert_state_dict(encoder))
    x = torch.randint(encoder.vocabulary, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = bert.eval()(x)
        torch.testing.assert_close(out.last_hidden_state.flatten(0, 1), encoder.tokens(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(out.pooler_output, out.last_hidden_state[:, 0].tanh(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", GRAPHS)
def test_onnx_gives_the_same(kind, run, tmp_path, capfd):
    """Batches of one and seven, lengths other than when it was traced; the tokeniser beside it pads and cuts."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tokens, path = exports.export(run(kind), tmp_path / "m.onnx")
    said = capfd.readouterr()
    assert said.out + said.err == ""
    held = path.read_bytes()
    assert b".py" not in held
    assert str(run(kind).folder.parent).encode() not in held
    session = runtime.InferenceSession(held, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, len(i.shape)) for i in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", 2), ("attention_mask", "tensor(int64)", 2)]  # fmt: skip
    assert [(o.name, o.shape[1]) for o in session.get_outputs()] == [("embedding", 32)]
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(tokens))
    for texts in (HARD[:1], HARD[:7], HARD[8:]):
        rows = tokenizer.encode_batch([run(kind).recipe.text.prefix + t for t in texts])
        given = (np.array([getattr(r, name) for r in rows]) for name in ("ids", "attention_mask"))
        z = session.run(None, dict(zip(("input_ids", "attention_mask"), given)))[0]
        np.testing.assert_allclose(z, run(kind).embed(texts), atol=1e-5)


def test_images_as_onnx_are_judged_like_the_run(small_run, digits, tmp_path, capsys):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (path,) = exports.export(small_run, tmp_path / "digits.onnx")
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for n in (1, 7):
        x = digits[0][:n, None].astype(np.float32) / 255  # (n, 1, H, W)
        z = session.run(None, {"images": x})[0]
        np.testing.assert_allclose(z, small_run.embed(digits[0][:n]), atol=1e-5)
    source, out = str(small_run.folder.parent / "d.npz"), str(tmp_path / "judged")
    assert cli.main(["evaluate", str(path), source, "--out", out, "--draws", "2"]) == 0
    capsys.readouterr()
    with pytest.raises(UserError, match=r"it is of images; give OUT.onnx or OUT.safetensors"):
        exports.export(small_run, tmp_path / "folder")


@pytest.mark.parametrize("kind", ["gru", "attention"])
def test_weights_alone(kind, run, tmp_path):
    tokens, path = exports.export(run(kind), tmp_path / "w.safetensors")
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["config"])
        assert set(file.keys()) == set(run(kind).encoder.state_dict())
        assert torch.equal(file.get_tensor("embedding.weight"), run(kind).encoder.embedding.weight)
    assert (about["features"], about["vocabulary"]) == (32, run(kind).encoder.vocabulary)
    assert Tokenizer.load(str(tokens)).size == run(kind).input.tokenizer.size


@pytest.mark.parametrize(("kind", "out", "says"), [
    ("attention", "folder", "it has no attention pooling; give OUT.onnx"),
    ("gru", "folder", "it has no GRU that is the same; give OUT.onnx"),
])  # fmt: skip
def test_what_cannot_be_exported_is_one_line(kind, out, says, run, tmp_path, capsys):
    assert cli.main(["export", str(run(kind).folder), "-o", str(tmp_path / out)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def full(*args, **more):
    raise OSError("full")


def test_nothing_is_lost(run, tmp_path, monkeypatch, capsys):
    """What is there stays unless --force; what is not an export stays even then; a failure leaves nothing behind."""
    folder, out = str(run("bag").folder), tmp_path / "out"
    assert cli.main(["export", folder, "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    before = sorted(p.name for p in out.iterdir())
    (out / "mine.txt").write_text("kept")
    assert cli.main(["export", folder, "-o", str(out)]) == 2
    assert "pass another name, or --force to replace it" in capsys.readouterr().err
    assert (out / "mine.txt").read_text() == "kept"
    with monkeypatch.context() as broken:
        broken.setattr(exports.sentence_transformers, "save_file", full)
        with pytest.raises(OSError, match="full"):
            exports.export(run("bag"), out, force=True)
    assert (out / "mine.txt").read_text() == "kept"
    assert cli.main(["export", folder, "-o", str(out), "--force"]) == 0
    assert sorted(p.name for p in out.iterdir()) == before
    (tmp_path / "photos").mkdir()
    assert cli.main(["export", folder, "-o", str(tmp_path / "photos"), "--force"]) == 2
    assert "is not what was exported before" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["out", "photos"]


@pytest.mark.parametrize(("spec", "name"), [
    ("/home/me/data/train.csv", "train.csv"), ("C:\\Users\\me\\train.csv", "train.csv"),
    ("text:hf:org/set", "text:hf:org/set"), ("transformers:/models/bert@random", "transformers:bert@random"),
    ("transformers:org/bert", "transformers:org/bert"),
    ("data/pairs.csv", "pairs.csv"), ("bag", "bag"), ("pydoc", "pydoc"), ("hf:~/me/set", "hf:set"),
])  # fmt: skip
def test_names_without_the_folders_they_lie_in(spec, name):
    assert shown_name(spec) == name
