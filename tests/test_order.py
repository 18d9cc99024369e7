"""An epoch's order is a bijection in all its forms, told piece by piece; names and labels take no objects."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.data import Loader, open_source, order
from nearfar.data.names import Names, Picked, coded, paired
from nearfar.data.order import Order, feistel
from nearfar.data.source import by_class

names = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6), max_size=40)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 99))
def test_feistel_is_a_bijection(n, seed, epoch):
    got = feistel(np.arange(n), n, (seed, epoch))
    assert sorted(got.tolist()) == list(range(n))


def test_feistel_spreads_evenly_and_anew_each_epoch():
    n = 100_000
    one, two = (feistel(np.arange(n), n, (0, epoch)) for epoch in (0, 1))
    assert (one == two).sum() < 20  # of a random permutation, one
    for p in (one, two):
        x = np.arange(n)
        assert abs(np.corrcoef(x, p)[0, 1]) < 0.02
        assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 0.02
        cells = np.histogram2d(x, p, 10)[0]  # 1,000 expected in each
        assert ((cells - 1000) ** 2 / 1000).sum() < 150  # chi-squared, 81 degrees of freedom: 1e-6
    far = feistel(np.array([0, 2**40 - 1]), 2**40, (0, 0))
    assert ((far >= 0) & (far < 2**40)).all()


def test_plain_order_is_numpy_s_permutation():
    want = np.random.default_rng([7, 3]).permutation(50)
    np.testing.assert_array_equal(Order(50, 7).at(3, 10, 40), want[10:40])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 5), st.integers(0, 99), st.integers(1, 9))
def test_order_of_shards_sees_each_record_once_in_any_pieces(sizes, window, seed, piece):
    n, blocks = sum(sizes), np.unique(np.concatenate([[0], np.cumsum(sizes)]))
    made = Order(n, seed, blocks, window)
    whole = made.at(2, 0, n)
    assert sorted(whole.tolist()) == list(range(n))
    pieces = [Order(n, seed, blocks, window).at(2, at, min(at + piece, n)) for at in range(0, n, piece)]
    assert np.concatenate([*pieces, whole[:0]]).tolist() == whole.tolist()


def test_order_of_shards_stays_within_a_window_and_changes(monkeypatch):
    blocks = np.arange(0, 101, 10) * 100
    made = Order(10_000, 0, blocks, 4)
    shards = [set((made.at(0, at, min(at + 4000, 10_000)) // 1000).tolist()) for at in (0, 4000, 8000)]
    assert [len(s) for s in shards] == [4, 4, 2]
    assert made.at(0, 0, 4000).tolist() != made.at(1, 0, 4000).tolist()
    monkeypatch.setattr(order, "PLAIN", 100)  # a window of more than 2^24 records
    assert sorted(Order(10_000, 0, blocks, 4).at(0, 0, 10_000).tolist()) == list(range(10_000))


def test_loader_takes_the_order_of_a_source_s_shards():
    source = open_source(np.arange(60, dtype=np.uint8)[:, None, None]).train
    object.__setattr__(source, "blocks", np.arange(0, 61, 2))
    parts = [Loader(source, 12, 1, rank, 3) for rank in range(3)]
    seen = np.concatenate([p.indices(step) for step in range(5) for p in parts])
    assert sorted(seen.tolist()) == list(range(60))
    assert len({i // 2 for i in seen[:32].tolist()}) == 16
    part = source.subset([1, 2, 3, 8, 30, 31])
    assert part.blocks.tolist() == [0, 1, 3, 4, 6]
    assert source.subset([3, 1]).blocks is None


@settings(max_examples=60, deadline=None)
@given(names, names)
def test_flat_names_are_as_lists(a, b):
    one, two = Names.of(a), Names.of(b)
    assert (list(one), len(one), [one[i] for i in range(len(a))]) == (a, len(a), a)
    assert (one == two, one == b) == (a == b, a == b)
    theirs, mine = paired(one, two)
    assert [a[i] for i in theirs] == [b[i] for i in mine]
    if len(set(a)) == len(a) and len(set(b)) == len(b):
        assert len(mine) == len(set(a) & set(b))
    if a:
        index = np.arange(len(a))[::-1]
        twice = Picked(Picked(one, index), index[:3])
        assert list(twice) == a[:: -1][::-1][:3]
        with pytest.raises(IndexError):
            one[len(a)]
    codes, kinds = coded(a, len(a))
    assert ([kinds[c] for c in codes], list(kinds)) == (a, sorted(set(a)))


def test_fingerprint_of_many_images_is_of_their_hashes(monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (50, 4, 4), dtype=np.uint8)
    monkeypatch.setattr("nearfar.data.source.MANY", 20)
    source = open_source(x).train
    changed = x.copy()
    changed[30, 1, 1] ^= 1
    assert source.fingerprint() == open_source(x).train.fingerprint() != open_source(changed).train.fingerprint()
    known = open_source(x).train
    object.__setattr__(known, "hashes", source.item_hashes)
    object.__setattr__(known, "reader", None)  # nothing is read
    assert known.fingerprint() == source.fingerprint()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_records_by_class_are_those_of_each_class(labels):
    y = np.array(labels)
    assert [part.tolist() for part in by_class(y)] == [np.flatnonzero(y == k).tolist() for k in np.unique(y)]
