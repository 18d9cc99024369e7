"""Tokenisers are the same each time and read what Hugging Face's read; tokens are what the texts say."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.text import open_texts
from nearfar.text.tokenizer import Specials, Tokenizer
from nearfar.text.tokens import neighbouring, tokenised

lib = pytest.importorskip("tokenizers")

LINES = ["The boat and the sail.", "A boat, a harbour; the SAIL!", "soup with bread", "bread, soup and butter",
         "naïve café"]  # fmt: skip
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def wikipedia(data):
    return (data / "text" / "sentences" / "wikipedia_14750.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def wordpiece():
    return Tokenizer.train(LINES * 5, vocabulary=200)


@pytest.fixture(scope="module")
def bpe():
    return Tokenizer.train(LINES * 5, kind="bpe", vocabulary=400)


def rows(tokenizer, texts, length=64, **options):
    ids, lengths = tokenizer.encode(texts, length, **options)
    assert ids.dtype == lengths.dtype == np.int32
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def told(make):
    """What is made, or the one line that says why not."""
    try:
        return make(), ""
    except ValueError as error:
        said = str(error)
    assert "\n" not in said
    return None, said


# learning

@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_the_same_file_from_the_same_text_whatever_the_threads(kind, data):
    """In processes of their own, as hash tables and threads are a process's."""
    code = (f"from nearfar.text.tokenizer import Tokenizer; import sys; sys.stdout.write(Tokenizer.train(open("
            f"{str(data / 'text' / 'sentences' / 'wikipedia_14750.txt')!r}).read().splitlines()[:4000], kind={kind!r}, "
            "vocabulary=3000, lower=True).to_json())")  # fmt: skip
    said = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True,
                           env=os.environ | {"TOKENIZERS_PARALLELISM": threads}).stdout
            for threads in ("false", "true", "true")}  # fmt: skip
    assert len(said) == 1
    assert Tokenizer.from_json(said.pop()).size == 3000


def test_wordpiece_learns_what_the_library_s_trainer_learns(wikipedia):
    """Up to ties: nearly the same words, and nearly as few tokens for the text."""
    held = lib.Tokenizer(lib.models.WordPiece(unk_token="[UNK]"))
    held.normalizer = lib.normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    held.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
    names = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    held.train_from_iterator(wikipedia[:5000], lib.trainers.WordPieceTrainer(
        vocab_size=2000, special_tokens=names, show_progress=False, min_frequency=2))  # fmt: skip
    mine = Tokenizer.train(wikipedia[:5000], vocabulary=2000, lower=True)
    words, own = set(held.get_vocab()), set(mine._held.get_vocab())
    assert len(words & own) > 0.98 * 2000
    theirs = sum(len(e.ids) for e in held.encode_batch_fast(wikipedia[5000:6000]))
    ids, _ = mine.encode(wikipedia[5000:6000], 999, specials=False)
    assert abs(len(ids) / theirs - 1) < 0.005
    assert mine.unknown_share(ids) < 0.001


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_bpe_knows_all_and_loses_nothing(texts):
    bpe = Tokenizer.train(LINES * 5, kind="bpe", vocabulary=300)
    for text, ids in zip(texts, rows(bpe, texts, 999, specials=False)):
        if text:
            assert 0 not in ids
            assert bpe.decode(ids).removeprefix(" ") == text.removeprefix(" ")
        else:
            assert ids == [0]


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(10, 200), st.booleans())
def test_a_vocabulary_is_never_larger_than_asked_for(texts, size, lower):
    made, said = told(lambda: Tokenizer.train(texts, vocabulary=size, lower=lower))
    if made is None:
        assert "vocabulary" in said or "without a word" in said
        return
    assert made.size <= size
    assert made.specials == (0, 1, 2, 3)
    ids, lengths = made.encode(texts, 999)
    assert ((ids >= 0) & (ids < made.size)).all()
    again = Tokenizer.train(texts, vocabulary=size, lower=lower)
    assert again.to_json() == made.to_json()


def test_capitals():
    assert len(set(map(tuple, rows(Tokenizer.train(LINES, lower=True, vocabulary=99), ["the SAIL", "The sail"])))) == 1
    assert len(set(map(tuple, rows(Tokenizer.train(LINES, vocabulary=99), ["the SAIL", "The sail"])))) == 2


# encoding

@settings(max_examples=80, deadline=None)
@given(TEXTS, st.integers(3, 12), st.booleans())
def test_texts_are_cut_and_keep_their_ends(texts, length, specials):
    wordpiece = Tokenizer.train(LINES * 5, vocabulary=200)
    whole, cut = (rows(wordpiece, texts, n, specials=specials) for n in (999, length))
    for a, b in zip(whole, cut):
        assert 1 <= len(b) == min(len(a), length)
        if specials:
            assert (b[0], b[-1]) == (1, 2)
            assert b[:-1] == a[: len(b) - 1]
            assert len(b) > 2
        else:
            assert b == a[: len(b)]
    assert [r for text in texts for r in rows(wordpiece, [text], length, specials=specials)] == cut


def test_a_text_cannot_spell_a_special_token(wordpiece, bpe):
    for tokenizer in (wordpiece, bpe, Tokenizer.from_json(wordpiece.to_json())):
        ids = rows(tokenizer, ["a [SEP] b [MASK] [CLS]"])[0]
        assert [i for i in ids[1:-1] if i in (1, 2, 3)] == []


def test_a_line_of_a_megabyte_costs_next_to_nothing(wordpiece):
    texts = ["word " * 200_000, "x" * 10**6] * 20
    begun = time.perf_counter()
    got = rows(wordpiece, texts, 16)
    assert time.perf_counter() - begun < 1
    assert {len(r) for r in got[::2]} == {16}


def test_nothing_becomes_one_unknown_token_and_is_counted(wordpiece):
    texts = ["", " \t", "the boat", "\x00", "λόγος"]
    assert rows(wordpiece, texts[:2]) == [[1, 0, 2]] * 2
    assert rows(wordpiece, texts[:2], specials=False) == [[0]] * 2
    for specials in (True, False):
        assert wordpiece.wordless(*wordpiece.encode(texts, 9, specials=specials), specials=specials) == 4
    ids, _ = wordpiece.encode(["the λόγος boat", "the"], 9)
    assert wordpiece.unknown_share(ids) == 1 / 4
    assert wordpiece.unknown_share([]) == 0


def test_no_room_is_one_line(wordpiece):
    with pytest.raises(ValueError, match=r"2 tokens have no room.*text\.max_length = 3"):
        wordpiece.encode(["the"], 2)


# of others

def bert(folder, **config):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "boat", "sail", "##s", "cafe", "café", ".",
             "水"]  # fmt: skip
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("lower", [True, False])
def test_a_bert_s_vocab_txt_reads_as_transformers_reads_it(tmp_path, lower):
    transformers = pytest.importorskip("transformers")
    folder = bert(tmp_path, do_lower_case=lower)
    mine = Tokenizer.load(str(folder))
    theirs = transformers.BertTokenizerFast.from_pretrained(str(folder), do_lower_case=lower)
    texts = ["The boats sail.", "café 水水 the", "CAFÉ", "unknown the", "the " * 30]
    assert rows(mine, texts, 10) == theirs(texts, truncation=True, max_length=10)["input_ids"]
    assert mine.specials == (1, 2, 3, 4)
    assert rows(Tokenizer.load(str(folder / "vocab.txt")), texts, 10) == rows(mine, texts, 10)
    theirs.save_pretrained(tmp_path / "fast")
    again = Tokenizer.load(str(tmp_path / "fast"))
    assert rows(again, texts, 10) == rows(mine, texts, 10)
    assert again.specials == mine.specials == Tokenizer.from_json(again.to_json()).specials


def roberta():
    held = lib.Tokenizer(lib.models.BPE())
    held.pre_tokenizer, held.decoder = lib.pre_tokenizers.ByteLevel(), lib.decoders.ByteLevel()
    held.train_from_iterator(LINES, lib.trainers.BpeTrainer(
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False,
        initial_alphabet=lib.pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    held.post_processor = lib.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return held


def t5():
    held = lib.Tokenizer(lib.models.Unigram())
    held.pre_tokenizer, held.decoder = lib.pre_tokenizers.Metaspace(), lib.decoders.Metaspace()
    held.train_from_iterator(LINES, lib.trainers.UnigramTrainer(
        special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", vocab_size=80, show_progress=False))  # fmt: skip
    held.post_processor = lib.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return held


def gpt():
    held = roberta()
    held.post_processor = lib.processors.ByteLevel()
    return held


@pytest.mark.parametrize(("make", "specials"), [(roberta, (3, 0, 2, 4)), (t5, (2, -1, 1, -1))])
def test_what_a_tokenizer_does_itself_says_its_specials(make, specials, tmp_path):
    held = make()
    whole = lib.Tokenizer.from_str(held.to_str())
    held.enable_padding(length=50)
    held.enable_truncation(4)
    held.save(str(tmp_path / "tokenizer.json"))
    mine = Tokenizer.load(str(tmp_path))
    assert rows(mine, LINES) == [e.ids for e in whole.encode_batch(LINES)]
    if specials[1] < 0:  # </s> alone
        assert mine.specials.sep == rows(mine, ["boat"])[0][-1]
    assert mine.specials == specials
    again = Tokenizer.from_json(mine.to_json())
    assert (again.specials, again.size, rows(again, LINES)) == (mine.specials, mine.size, rows(mine, LINES))
    assert lib.Tokenizer.from_str(mine.to_json()).get_vocab_size() == mine.size  # a plain tokenizer.json


def test_names_beside_it_are_believed_and_kept(tmp_path):
    held = gpt()
    held.add_special_tokens(["<gap>"])
    held.save(str(tmp_path / "tokenizer.json"))
    names = {"mask_token": {"content": "<gap>"}, "unk_token": None}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    mine = Tokenizer.load(str(tmp_path))
    assert mine.specials.mask == held.token_to_id("<gap>")
    again = Tokenizer.from_json(mine.to_json())
    assert (again.specials, again.to_json()) == (mine.specials, mine.to_json())
    assert rows(again, LINES) == rows(mine, LINES)


def test_an_id_beyond_the_count_has_a_row():
    held = lib.Tokenizer(lib.models.WordLevel({"[UNK]": 0, "a": 7}, unk_token="[UNK]"))
    assert Tokenizer(held).size == 8


def test_what_cannot_be_had_is_one_line(tmp_path, wordpiece):
    (tmp_path / "empty").mkdir()
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    (tmp_path / "broken.json").write_text(wordpiece.to_json()[:200])
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "tokenizer.json").write_text(wordpiece.to_json())
    (tmp_path / "odd" / "tokenizer_config.json").write_text("[" * 10**5)
    for name in ("empty", "vocab.txt", "broken.json", "odd"):
        with pytest.raises(ValueError, match="no tokeniser") as error:
            Tokenizer.load(str(tmp_path / name))
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 600
    for name in ("no/such/folder", "missing/tokenizer.json", "./missing"):
        with pytest.raises(ValueError, match=f"no tokeniser {name} .there is no such file or folder"):
            Tokenizer.load(name)
    with pytest.raises(ValueError, match="did you mean wordpiece"):
        Tokenizer.load("wordpeice")
    with pytest.raises(ValueError, match="unknown kind of tokeniser 'letters'"):
        Tokenizer.train(LINES, kind="letters")
    with pytest.raises(ValueError, match="has no room for all bytes"):
        Tokenizer.train(LINES, kind="bpe", vocabulary=100)
    with pytest.raises(ValueError, match=r"the texts' \d+ letters: give text.vocabulary = \d+ or more") as error:
        Tokenizer.train(LINES, vocabulary=12)
    least = int(str(error.value).split("vocabulary = ")[1].split()[0])
    assert Tokenizer.train(LINES, vocabulary=least).size == least
    with pytest.raises(ValueError, match="without a word"):
        Tokenizer.train(["", " "])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(data):
    text = Tokenizer.train(["the boat"] * 3, vocabulary=30).to_json()
    at = data.draw(st.integers(0, len(text) - 1))
    length, put = data.draw(st.integers(0, 20)), data.draw(st.text("0123456789-{}[]\",: anul", max_size=4))
    made, said = told(lambda: Tokenizer.from_json(text[:at] + put + text[at + length :]))
    if made is None:
        assert said.startswith("tokenizer.json is broken")
    else:
        made.decode(made.encode(LINES, 9)[0])
    for odd in ('{"specials":', '{"specials":3,"tokenizer":"{}"}', '{"specials":{}}', "[]", ""):
        with pytest.raises(ValueError, match="is broken"):
            Tokenizer.from_json(odd)


# sources

PAIRED = [("the boat", "a sail"), ("soup", "bread and butter"), ("The Boat ", "bread"), ("harbour", "soup"),
          ("x", "y")]  # fmt: skip


def naive(tokenizer, texts, index, length, specials=True, prefixes=("", "")):
    held = [[rows(tokenizer, [prefixes[s > 0] + texts.text(i, s)], length, specials=specials)[0]
             for s in range(len(texts.slots))] for i in index]  # fmt: skip
    longest = max(len(r) for row in held for r in row)
    return np.array([[r + [-1] * (longest - len(r)) for r in row] for row in held])


@pytest.mark.parametrize("specials", [True, False])
@pytest.mark.parametrize("prefixes", [("", ""), ("query: ", "passage: ")])
def test_a_source_reads_as_one_text_after_the_other(bpe, specials, prefixes):
    texts = open_texts(PAIRED * 900).train  # more than two blocks
    held = tokenised(texts, bpe, max_length=7, prefix=prefixes[0], second_prefix=prefixes[1], specials=specials)
    assert (len(held), held.shape, held.reader.flat.dtype) == (4500, (2, 7), np.uint16)
    for index in ([0], [3, 4499, 3], [4], list(range(2040, 2060))):
        got = held.read(index)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, naive(bpe, texts, index, 7, specials, prefixes))
    assert held.read([]).shape == (0, 2, 0)
    part = held.subset([7, 2])
    np.testing.assert_array_equal(part.read([1, 0]), held.read([2, 7]))
    np.testing.assert_array_equal(part.hashes, texts.hashes[[7, 2]])


def test_names_are_the_texts(wordpiece):
    texts = open_texts(["the boat", "soup\u2028and\u0000", "bread " * 100]).train
    names = tokenised(texts, wordpiece, say=lambda line: None).names
    assert list(names) == [names[0], names[1], names[2]] == ["the boat", names[1], ("bread " * 100)[:200] + "…"]
    assert names[1].isprintable()
    assert names[-1] == names[2]
    with pytest.raises(IndexError):
        names[3]


def test_labels_and_scores_come_with_them(wordpiece):
    scored = tokenised(open_texts((PAIRED, [0.0, 0.5, 1.0, 0.25, 0.1])).train, wordpiece)
    assert scored.labels is None
    np.testing.assert_allclose(scored.scores, [0, 0.5, 1, 0.25, 0.1])
    named = tokenised(open_texts((LINES, ["b", "b", "a", "a", "b"])).train, wordpiece)
    assert (named.classes, named.labels.tolist(), named.scores) == (("a", "b"), [1, 1, 0, 0, 1], None)


def test_a_fingerprint_says_which_texts_they_are_not_how_they_are_cut(wordpiece, bpe):
    texts = open_texts(PAIRED).train
    marks = {tokenised(texts, t, max_length=n, specials=s).fingerprint()
             for t in (wordpiece, bpe) for n in (8, 64) for s in (True, False)}  # fmt: skip
    assert len(marks) == 1
    others = [PAIRED[::-1], PAIRED[:-1], [(b, a) for a, b in PAIRED], [f"{a}{b}" for a, b in PAIRED],
              (PAIRED, [0, 1, 0, 1, 0]), (PAIRED, [0, 1, 0, 1, 0.5])]  # fmt: skip
    marks |= {tokenised(open_texts(o).train, wordpiece).fingerprint() for o in others}
    assert len(marks) == 1 + len(others)


def test_unreadable_texts_are_counted_and_no_text_is_an_error(wordpiece):
    said = []
    tokenised(open_texts(["the boat", "λόγος", "水"]).train, wordpiece, say=said.append)
    assert len(said) == 1
    assert "2 of 3 texts hold nothing that the tokeniser knows" in said[0]
    texts = open_texts(["the boat"]).train
    with pytest.raises(ValueError, match="has no text"):
        tokenised(texts.subset([]), wordpiece)


def test_what_is_kept_apart(wordpiece):
    def shared(texts, **options):
        numbers = tokenised(texts, wordpiece, say=lambda line: None, **options).apart.reshape(len(texts), -1).tolist()
        return {(i, j) for j in range(len(numbers)) for i in range(j) if set(numbers[i]) & set(numbers[j])}

    assert shared(open_texts(PAIRED).train) == {(0, 2), (1, 3)}  # "The Boat ", and soup in either place
    triplets = [("a", "b", "n"), ("c", "d", "n"), ("e", "f", "b"), ("g", "h", "i")]
    assert shared(open_texts(triplets).train) == {(0, 2)}  # a negative may come twice, but be nobody's positive
    labelled = open_texts((LINES[:4], ["b", "b", "a", "c"])).train
    assert shared(labelled) == set()
    assert shared(labelled, apart="label") == {(0, 1)}
    with pytest.raises(ValueError, match="has no documents by which"):
        tokenised(labelled, wordpiece, apart="document")
    with pytest.raises(ValueError, match="unknown apart 'labels'; did you mean 'label'"):
        tokenised(labelled, wordpiece, apart="labels")


def in_documents(texts, documents):
    return dataclasses.replace(open_texts(texts).train, documents=np.array(documents))


@pytest.mark.parametrize("reach", [1, 2, 9])
def test_neighbours_are_of_one_document(wordpiece, reach):
    texts = in_documents(["the boat", "soup", "bread", "soup", "harbour", "butter"], [4, 4, 4, 4, 9, 9])
    single = tokenised(texts, wordpiece, max_length=9)
    held = neighbouring(single, texts, reach)
    want = [(i, j) for i in range(6) for j in range(i + 1, 6) if (i < 4) == (j < 4) and j - i <= reach]
    assert (len(held), held.shape) == (len(want), (2, 9))
    np.testing.assert_array_equal(held.read(np.arange(len(want))), naive(wordpiece, texts, np.ravel(want), 9).reshape(
        len(want), 2, -1))  # fmt: skip
    assert list(held.names) == [single.names[i] for i, _ in want]
    words = [{texts.text(i), texts.text(j)} for i, j in want]
    for a in range(len(want)):
        for b in range(a):
            assert bool(words[a] & words[b]) == bool(set(held.apart[a].tolist()) & set(held.apart[b].tolist()))
    assert len(set(held.hashes.tolist())) == len({(texts.text(i), texts.text(j)) for i, j in want})
    other = in_documents(list(texts.column()), [4, 4, 4, 9, 9, 9])
    assert held.fingerprint() != neighbouring(single, other).fingerprint()


def test_neighbours_with_prefixes_of_their_own(wordpiece):
    texts = in_documents(["the boat", "soup", "bread with butter"], [0, 0, 0])
    for prefixes in (("", ""), ("the ", "the "), ("the ", "soup and ")):
        made = tokenised(texts, wordpiece, max_length=12, prefix=prefixes[0], second_prefix=prefixes[1],
                         pairs="neighbours", reach=2)  # fmt: skip
        got = [[row[row >= 0].tolist() for row in pair] for pair in made.read([0, 1, 2])]
        said = [[prefixes[0] + texts.text(i), prefixes[1] + texts.text(j)] for i, j in ((0, 1), (0, 2), (1, 2))]
        assert got == [rows(wordpiece, pair, 12) for pair in said]
    part = neighbouring(tokenised(texts, wordpiece).subset([0, 1]), texts.subset([0, 1]))
    assert part.read([0]).tolist() == made_plain(wordpiece, ["the boat", "soup"])
    with pytest.raises(ValueError, match="unknown pairs 'near'"):
        tokenised(texts, wordpiece, pairs="near")


def made_plain(tokenizer, pair):
    longest = max(map(len, rows(tokenizer, pair)))
    return [[r + [-1] * (longest - len(r)) for r in rows(tokenizer, pair)]]


def test_no_neighbours_is_one_line(wordpiece):
    plain = open_texts(LINES).train
    with pytest.raises(ValueError, match="no documents"):
        neighbouring(tokenised(plain, wordpiece), plain)
    alone = in_documents(LINES, range(5))
    with pytest.raises(ValueError, match="no two texts stand next to each other"):
        neighbouring(tokenised(alone, wordpiece), alone)
    pairs = open_texts(PAIRED).train
    with pytest.raises(ValueError, match="made of single texts"):
        neighbouring(tokenised(pairs, wordpiece), pairs)


def test_specials_are_the_four():
    assert Specials() == (0, 1, 2, 3)
    assert Specials._fields == ("unk", "cls", "sep", "mask")
