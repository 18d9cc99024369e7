"""Sources of texts: what is read, and what each kind of broken input says."""

import csv
import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.errors import UserError
from nearfar.text import TextOptions, looks_like_text, open_texts
from nearfar.text.sentences import sentences


def opened(spec, said=None, max_bad=0.5, **options):
    return open_texts(spec, TextOptions(**options), max_bad=max_bad, say=(said if said is not None else []).append)


def rows(texts):
    return [texts.row(i) for i in range(len(texts))]


@pytest.fixture
def put(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def labels(texts):
    return [texts.classes[y] for y in texts.labels]


@pytest.mark.parametrize(("name", "slots", "n", "test", "classes"), [
    ("stsb", 2, 5749, 1379, 0), ("banking77", 1, 10003, 3080, 77), ("clinc150/data_full.json", 1, 15000, 4500, 150),
])  # fmt: skip
def test_real_tables(data, name, slots, n, test, classes):
    said = []
    splits = opened(data / "text" / name, said)
    assert looks_like_text(data / "text" / name)
    assert (len(splits.train), len(splits.test), len(splits.train.slots)) == (n, test, slots)
    assert len(splits.train.classes or ()) == classes
    assert splits.train.classes == splits.test.classes
    assert splits.train.skipped == splits.test.skipped == ()
    if name == "stsb":
        with open(data / "text/stsb/train.csv", newline="") as file:
            held = list(csv.reader(file))
        assert rows(splits.train) == [tuple(" ".join(c.split()) for c in row[:2]) for row in held]
        np.testing.assert_allclose(splits.train.scores, [float(row[2]) / 5 for row in held], atol=1e-7)
        assert "dev is left out" in said[0]
    if "clinc" in name:
        assert "oos_train" in said[0]


def test_real_zips(data):
    polarity = opened(data / "text/sentence_polarity.zip", label="file").train
    assert polarity.classes == ("rt-polarity.neg", "rt-polarity.pos")
    assert np.bincount(polarity.labels).tolist() == [5331, 5331]
    speeches = opened(data / "text/sentences/inaugural.zip", unit="document").train
    assert len(speeches) == 59
    assert {k.reason for k in speeches.skipped} == {"it is no valid text in this encoding"}
    assert speeches.skipped[0].name.startswith("2005-Bush.txt, line ")
    whole = opened(data / "text/sentences/inaugural.zip", unit="document", encoding="latin-1").train
    assert whole.skipped == ()
    pictures = ("detection/bccd", "segmentation/dsb2018", "pairs/emoji", "cifar10")
    assert not any(looks_like_text(data / name) for name in pictures)


def test_pydoc_is_english_by_topic():
    texts = opened("pydoc").train
    assert len(texts) > 1000
    assert labels(texts)[0] == "assert"
    assert (np.diff(texts.documents) >= 0).all()
    assert all(t[0].isupper() and not set(t) & set('`*"') and t.count(" ") >= 4 for t in texts.column())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_and_documents(put, end):
    """Any kind of line end; blank lines part documents; a text's white space, NUL bytes too, is one space."""
    path = put("a.txt", end.join(["one  a", "", "two\0b. Three", "four", " ", ""]))
    assert rows(opened(path).train) == [("one a",), ("two b. Three",), ("four",)]
    assert opened(path).train.documents.tolist() == [0, 1, 1]
    assert rows(opened(path, unit="sentence").train) == [("one a",), ("two b.",), ("Three four",)]
    assert rows(opened(path, unit="document").train) == [("one a",), ("two b. Three four",)]


def test_encodings(put):
    text = "grüße an alle\nzwei wörter\n"
    for kind in ("utf-8-sig", "utf-16"):
        path = put(f"{kind}.txt", text.encode(kind))
        if kind == "utf-16":
            with pytest.raises(UserError, match="is UTF-16: pass --text.encoding utf-16"):
                opened(path)
        held = opened(path, encoding="utf-8" if kind == "utf-8-sig" else kind).train
        assert rows(held) == [("grüße an alle",), ("zwei wörter",)]
    with pytest.raises(UserError, match="is UTF-16-LE: pass"):
        opened(put("le.txt", text.encode("utf-16-le")))
    path = put("l.txt", b"fine\nfine\n" + text.encode("latin-1"))
    held = opened(path).train
    assert rows(held) == [("fine",), ("fine",)]
    assert [k.name.rpartition(", ")[2] for k in held.skipped] == ["line 3", "line 4"]
    with pytest.raises(UserError, match=r"2 of 4 lines cannot be read, the first .*line 3.*encoding latin-1") as error:
        opened(path, max_bad=0.05)
    assert "\n" not in str(error.value)
    assert len(opened(path, encoding="latin-1").train) == 4
    with pytest.raises(UserError, match="unknown text.encoding"):
        TextOptions(encoding="undefined")


def test_long_lines(put):
    held = opened(put("a.txt", b"x" * 2**20 + b"\n" + b"y" * (2**24 + 9) + b"\nlast\n")).train
    assert held.sizes[:, 0].tolist() == [2**20, 4]
    assert "more than 16,777,216 bytes" in held.skipped[0].reason
    assert held.skipped[0].name.endswith("line 2")


def test_folders(put, tmp_path):
    for name in ("pos/1.txt", "pos/2.txt", "neg/3.txt"):
        put(f"f/{name}", f"text {name}\n\nmore\n")
    put("f/README.txt", "not this")
    put("f/.hidden/x.txt", "nor this")
    held = opened(tmp_path / "f").train
    assert labels(held) == ["neg"] * 2 + ["pos"] * 4
    assert held.documents.tolist() == [0, 0, 1, 1, 2, 2]
    assert rows(opened(tmp_path / "f", unit="document").train)[0] == ("text neg/3.txt more",)
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as z:
        for path in sorted((tmp_path / "f").rglob("*.txt")):
            z.write(path, path.relative_to(tmp_path))
    assert labels(opened(tmp_path / "f.zip").train)[:2] == ["neg"] * 2
    for part, name in (("train", "a"), ("train", "b"), ("test", "b")):
        put(f"imdb/{part}/{name}/1.txt", f"a {name}")
    splits = opened(tmp_path / "imdb")
    assert (labels(splits.train), labels(splits.test)) == (["a", "b"], ["b"])
    assert looks_like_text(tmp_path / "imdb")
    put("p/a.jpg", b"")
    put("p/list.txt", "a")
    assert not looks_like_text(tmp_path / "p")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no text: give a folder"):
        opened(tmp_path / "none")
    put("two/train.csv", "text\na")
    put("two/train.jsonl", '{"text": "b"}')
    with pytest.raises(UserError, match=r"train\.csv and train\.jsonl: leave one"):
        opened(tmp_path / "two")


TABLES = {
    "known": ("a.csv", "id,text,category\n1,a b,x\n2,c d,y\n", [("a b",), ("c d",)], ["x", "y"]),
    "semicolons": ("a.csv", "text;label\na, b;x\nc;y\n", [("a, b",), ("c",)], ["x", "y"]),
    "tabs, quotes are letters": ("a.tsv", 'text\tlabel\n"a\tx\nb"\ty\n', [('"a',), ('b"',)], ["x", "y"]),
    "lines in a cell": ("a.csv", 'text,label\n"a\nb ""c""",x\n', [('a b "c"',)], ["x"]),
    "pairs by name": ("a.jsonl", '{"premise": "a", "hypothesis": "b", "label": 1}\n', [("a", "b")], ["1"]),
    "a key that comes later": ("a.jsonl", '{"text": "a"}\n{"text": "b", "x": 1}\n', [("a",), ("b",)], None),
    "strings": ("a.jsonl", '"a b"\n"c"\n', [("a b",), ("c",)], None),
    "lists": ("a.json", '{"train": [["a", "x"], ["b", "y"]], "oos": [["z", "q"]]}', [("a", "x"), ("b", "y")], None),
    "columns": ("a.json", '{"text": ["a", "b"], "label": [0, 1]}', [("a",), ("b",)], ["0", "1"]),
    "BOM": ("a.json", b'\xef\xbb\xbf[{"text": "a"}]', [("a",)], None),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(put, case):
    name, content, wanted, classes = TABLES[case]
    held = opened(put(name, content)).train
    assert rows(held) == wanted
    assert (labels(held) if held.labels is not None else None) == classes


SKIPS = {
    "empty cell": ("a.csv", "text,label\na,x\n ,x\nb,x\n", 3, "empty"),
    "empty line": ("a.csv", "text,label\na,x\n\nb,x\n", 3, "empty"),
    "ragged": ("a.csv", "text,label\na,x\nb\nc,x\n", 3, "1 columns, not 2"),
    "a comma too many": ("a.csv", "text,label\na,x\nb,c,x\nd,x\n", 3, "3 columns, not 2"),
    "stray quote": ("a.csv", 'text,label\na,x\n"b" c,x\nd,x\n', 3, "not closed well"),
    "broken JSON": ("a.jsonl", '{"text": "a"}\n{"text": \n{"text": "b"}\n', 2, "it is no JSON"),
    "deep JSON": ("a.jsonl", '{"text": "a"}\n' + "[" * 10**5 + '\n{"text": "b"}\n', 2, "it is no JSON"),
    "a list": ("a.jsonl", '{"text": "a"}\n{"text": ["b"]}\n{"text": "c"}\n', 2, "a list or an object"),
    "no object": ("a.jsonl", '{"text": "a"}\n7\n{"text": "c"}\n', 2, "it is no object"),
    "half a letter": ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n{"text": "c"}\n', 2, "no valid text"),
    "bytes": ("a.csv", b"text,label\na,x\n\xff,x\nb,x\n", 3, "no valid text"),
}


@pytest.mark.parametrize("case", SKIPS)
def test_a_bad_row_is_left_out_and_named(put, case):
    name, content, number, reason = SKIPS[case]
    held = opened(put(name, content)).train
    assert len(held) == 2
    (left,) = held.skipped
    assert left.name.endswith(f"{name}, line {number}")
    assert reason in left.reason


ERRORS = {
    "unknown columns": ("a.csv", "comment,reply,stars\na b,c,1\nd,e,2\nf,g,3\n", {},
                        "its columns are comment, reply, stars"),
    "missing column": ("a.csv", "text,label\na,b\n", {"columns": "body"},
                       "no column 'body' for text: its columns are text, label"),
    "missing label": ("a.csv", "text,label\na,x\nb,\n", {}, "1 of 2 have no label, the first .*line 3"),
    "score outside": ("a.csv", "sentence1,sentence2,score\na,b,1\nc,d,7\n", {}, "line 3: score 7 lies outside 0 to 5"),
    "score above given": ("a.csv", "sentence1,sentence2,score\na,b,3\n", {"score_range": "0,2"},
                          "line 2: score 3 lies"),
    "no score": ("a.csv", "sentence1,sentence2,score\na,b,x\n", {}, "line 2: score 'x' is no number"),
    "NaN": ("a.csv", "sentence1,sentence2,score\na,b,nan\n", {}, "line 2: score 'nan' is not finite"),
    "a score of one text": ("a.csv", "text,stars\na,3\n", {"score": "stars"}, "cannot score single texts"),
    "open quote": ("a.csv", 'text,label\n"a,x\nb,x\n', {}, "line 2: a quote is opened and not closed"),
    "empty file": ("a.txt", "", {}, "holds no text"),
    "empty table": ("a.csv", "", {}, "holds no text"),
    "header alone": ("a.csv", "text,label\n", {}, "holds no text"),
    "empty JSON": ("a.json", "[]", {}, "holds no text"),
    "no table": ("a.json", "7", {}, "neither a list"),
    "no zip": ("a.zip", "PK nothing", {}, "cannot be read"),
    "no Parquet": ("a.parquet", "nothing", {}, "cannot be read"),
    "four texts": ("a.csv", "a b,c d,e f,g h\n" * 2, {}, "4 columns of text"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_read_is_one_line(put, case):
    name, content, options, says = ERRORS[case]
    with pytest.raises(UserError, match=says) as error:
        opened(put(name, content), **options)
    assert "\n" not in str(error.value)
    assert "a." in str(error.value)


def test_tables_without_header(put):
    pairs = opened(put("p.csv", "a b,c d,0.5\ne f,g h,5\n")).train
    assert (rows(pairs), pairs.scores.tolist()) == ([("a b", "c d"), ("e f", "g h")], [np.float32(0.1), 1])
    named = opened(put("q.csv", "x,a b\ny,c d\n"), columns="1", label="0").train
    assert (rows(named), labels(named)) == ([("a b",), ("c d",)], ["x", "y"])
    numbered = opened(put("r.csv", "a b,10\nc d,9\n")).train
    assert numbered.classes == ("9", "10")
    assert rows(opened(put("one.csv", "a single text\n")).train) == [("a single text",)]


def test_scores_of_the_test_part_are_in_the_training_range(put, tmp_path):
    put("s/train.csv", "a,b,0\nc,d,4\n")
    put("s/test.csv", "a,b,1\nc,d,0.5\n")
    assert opened(tmp_path / "s").test.scores.tolist() == [np.float32(0.2), np.float32(0.1)]


def test_lists():
    pairs = opened(([("a", "b"), ("c", "d")], np.array([0.0, 5.0]))).train
    assert (pairs.slots, pairs.scores.tolist()) == (("sentence1", "sentence2"), [0, 1])
    assert opened([("a", "b", "c")]).train.slots == ("anchor", "positive", "negative")
    assert labels(opened((["a", "b"], ["y", "x"])).train) == ["y", "x"]
    assert opened((["a", "b"], np.array([7, 7]))).train.classes == ("7",)
    for spec, says in [([], "empty"), (["a", ("b", "c")], "row 1"), ((["a"], [1, 2]), "2 labels"),
                       ([("a",) * 4], "rows of 4"),
                       (([("a", "b")], [float("nan")]), "row 0: score nan is not finite")]:  # fmt: skip
        with pytest.raises(UserError, match=says):
            opened(spec)


def test_parquet_and_hugging_face(tmp_path, put):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"n": [1, 2, 3], "sentence2": ["x", None, "z"], "sentence1": ["a", "b", "c"],
                      "score": [0.0, 1, 5]})  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    held = opened(tmp_path / "a.parquet").train
    assert rows(held) == [("a", "x"), ("c", "z")]
    assert held.scores.tolist() == [0, 1]
    assert held.skipped[0].name.endswith("row 2")
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    hidden = datasets.Dataset.from_dict({"text": ["c"], "label": [-1]}, features=features)
    datasets.DatasetDict({"train": made, "test": hidden, "validation": made}).save_to_disk(str(tmp_path / "hf"))
    said = []
    splits = opened(f"text:hf:{tmp_path / 'hf'}", said)
    assert (labels(splits.train), splits.test.labels) == (["yes", "no"], None)
    assert "validation is left out" in said[0]


def test_sentences():
    text = 'He said "Go." Then J. R. Smith left, e.g. by car. is it? Ja. Ölig!\nnew line 3.5 km. 你好。再见。'
    assert list(sentences(text)) == ['He said "Go."', "Then J. R. Smith left, e.g. by car. is it?", "Ja.", "Ölig!",
                                     "new line 3.5 km.", "你好。", "再见。"]  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_sentences_lose_nothing(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=20))
def test_any_pairs_come_back(tmp_path_factory, pairs):
    """Through a CSV file as Python writes it; surrogates cannot be written, blank ones are left out."""
    pairs = [tuple(" ".join(t.encode("utf-8", "ignore").decode().replace("\0", " ").split()) for t in p) for p in pairs]
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("anchor", "positive"), *pairs])
    path.write_bytes(text.getvalue().encode())
    wanted = [p for p in pairs if all(p)]
    if wanted:
        assert rows(opened(path).train) == wanted
    else:
        with pytest.raises(UserError, match="holds no text"):
            opened(path)


@settings(deadline=None, max_examples=150)
@given(st.binary(max_size=300), st.sampled_from(["txt", "csv", "tsv", "json", "jsonl", "zip", "parquet"]))
def test_any_bytes_are_texts_or_one_line(tmp_path_factory, raw, kind):
    path = tmp_path_factory.mktemp("raw") / f"a.{kind}"
    path.write_bytes(raw)
    try:
        held = opened(path).train
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all(t and t == t.strip() for i in range(len(held)) for t in held.row(i))


def test_damaged_zips_are_one_line(put, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a.txt", "some text that is here " * 50)
    raw, rng = (tmp_path / "a.zip").read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        held = bytearray(raw)
        held[rng.integers(len(held))] ^= 1 << rng.integers(8)
        try:
            opened(put("b.zip", bytes(held)))
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_memory_is_flat(tmp_path, kind):
    """100,000 lines: beside their bytes, some tens of bytes a line, and no Python string each."""
    path, n = tmp_path / f"a.{kind}", 100_000
    lines = "".join(f"this is line {i} of many like it,c{i % 7}\n" for i in range(n))
    path.write_text("text,label\n" * (kind == "csv") + lines)
    del lines
    tracemalloc.start()
    held = opened(path).train
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(held) == n
    assert peak - len(held.blob) < n * 60 + 4 * 2**20


def test_a_document_without_end_is_not_held(tmp_path):
    """One block of 40 MB: its sentences are taken as it is read; as one text it is too long."""
    path = tmp_path / "a.txt"
    with open(path, "w") as file:
        for i in range(2000):
            file.write("A sentence of ten words that is as any other. " * 400 + f"\n{i} ends here. ")
    tracemalloc.start()
    with pytest.raises(UserError, match=r"holds no text: the first, .*line 1: it has more than"):
        opened(path, unit="document", max_bad=1)
    assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    tracemalloc.stop()
    held = opened(path, unit="sentence").train
    assert (len(held), len(set(held.documents.tolist()))) == (2000 * 400 + 2000, 1)
    assert (held.text(0), held.text(400)) == ("A sentence of ten words that is as any other.", "0 ends here.")


def test_records(put):
    lines = [json.dumps({"text": t, "label": y}) + "\n" for t, y in zip("abca", "xyxy")]
    held = opened(put("a.jsonl", "".join(lines))).train
    assert held.hashes[0] == held.hashes[3]
    assert len(set(held.hashes.tolist())) == 3
    few = held.subset([3, 1])
    assert (rows(few), labels(few)) == ([("a",), ("b",)], ["y", "y"])


def test_many_rows_left_out_are_counted(put):
    """The first 1,000 by name, the others by their number; what is bad after them still counts."""
    held = opened(put("a.csv", "text,label\n" + ",x\n" * 1500 + "a,x\n")).train
    assert (len(held), len(held.skipped), held.skipped[-1].name) == (1, 1001, "and 500 more")
    with pytest.raises(UserError, match=r"1 of 2 lines cannot be read, the first .*line 1503: it has 1 columns"):
        opened(put("b.csv", "text,label\n" + ",x\n" * 1500 + "a,x\nb\n"), max_bad=0.1)
