"""Batches of P classes with K images each: what is in them, and that they come from the seed and the step alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nearfar.data import Loader, open_source


def source(*sizes: int, seed: int = 0):
    """Images of 2 × 2 in shuffled order, as many of class 0, 1, … as is said; their grey value is their number."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = np.broadcast_to(np.arange(len(labels), dtype=np.uint8)[:, None, None], (len(labels), 2, 2))
    return open_source((images.copy(), labels)).train


SIZES = st.lists(st.integers(1, 30), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 12), st.integers(2, 6), st.integers(0, 99), st.integers(0, 1000))
def test_each_batch_has_p_classes_with_k_images_each(sizes, p, k, seed, step):
    assume(4 <= p * k <= sum(sizes) < 256)
    held = source(*sizes, seed=seed)
    batch = Loader(held, p * k, seed, per_class=k).batch(step)
    counts = Counter(batch.label.tolist())
    classes = min(len(sizes), max(2, p))
    assert len(batch.index) == p * k
    assert len(counts) == classes
    assert set(counts.values()) <= {p * k // classes, -(-p * k // classes)}
    if 2 <= p <= len(sizes):
        assert set(counts.values()) == {k}
    np.testing.assert_array_equal(batch.label, held.labels[batch.index])
    np.testing.assert_array_equal(batch.content[:, 0, 0, 0], batch.index)
    for c, n in counts.items():  # a class that is smaller than its share: all of it, evenly
        times = Counter(batch.index[batch.label == c].tolist())
        assert len(times) == min(n, sizes[c])
        assert max(times.values()) - min(times.values()) <= 1


@settings(max_examples=30, deadline=None)
@given(SIZES, st.sampled_from([4, 8, 12, 24]), st.integers(0, 99), st.integers(0, 200), st.sampled_from([1, 2, 4]))
def test_any_number_of_processes_sees_the_same_batches(sizes, batch, seed, step, world):
    assume(batch <= sum(sizes) < 256)
    held = source(*sizes)
    whole = Loader(held, batch, seed, per_class=4).indices(step)
    parts = [Loader(held, batch, seed, r, world, per_class=4).indices(step) for r in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_batch_is_a_function_of_seed_and_step_alone():
    held = source(20, 30, 40)
    loader = Loader(held, 12, 7, per_class=4)
    in_order = [b.index for b in loader.iterate(0, 9)]
    for step in (8, 3, 0, 5):
        np.testing.assert_array_equal(Loader(held, 12, 7, per_class=4).indices(step), in_order[step])
        np.testing.assert_array_equal(loader.indices(step), in_order[step])
    after = [b.index for b in loader.iterate(5, 9)]  # gone on with after an interruption
    np.testing.assert_array_equal(after, in_order[5:])
    assert len({tuple(i) for i in in_order}) == 9
    assert not np.array_equal(Loader(held, 12, 8, per_class=4).indices(0), in_order[0])


def test_classes_come_equally_often_whatever_their_size():
    held = source(2, 5, 60, 120)
    loader = Loader(held, 8, 0, per_class=4)
    seen = np.concatenate([held.labels[loader.indices(step)] for step in range(400)])
    assert np.bincount(seen).min() > 0.9 * len(seen) / 4
    images = np.bincount(np.concatenate([loader.indices(step) for step in range(400)]), minlength=len(held))
    assert images.min() > 0  # of the largest class, too


def test_the_batch_is_shuffled():
    """Each process gets rows of many classes, and no place in the batch is a class's own."""
    held = source(50, 50)
    loader = Loader(held, 32, 0, per_class=16)
    halves = [np.bincount(held.labels[loader.indices(step)[:16]], minlength=2) for step in range(20)]
    assert all(0 < a < 16 for a, _ in halves)
    assert len({int(a) for a, _ in halves}) > 2


def test_labels_that_skip_numbers_and_other_orders_of_records():
    held = source(10, 10, 10)
    part = held.subset(np.flatnonzero(held.labels != 1))  # a held-out part may lack a class
    counts = Counter(Loader(part, 8, 0, per_class=4).batch(0).label.tolist())
    assert counts == {0: 4, 2: 4}


def test_what_cannot_be_balanced_is_one_line():
    unlabelled = open_source(np.zeros((8, 2, 2), np.uint8)).train
    with pytest.raises(ValueError, match="need labels: this source has none"):
        Loader(unlabelled, 8, 0, per_class=4)
    with pytest.raises(ValueError, match="need at least two; all labels are the same"):
        Loader(source(9), 8, 0, per_class=4)
    with pytest.raises(ValueError, match="batch 3 has no room for two classes with two images each: pass --batch 4"):
        Loader(source(9, 9), 3, 0, per_class=4)
    Loader(unlabelled, 3, 0)  # without classes nothing of this is asked


def test_many_classes_are_listed_at_once():
    """Sorted once, not searched class by class: a hundred thousand classes would take minutes."""
    n = 200_000
    held = open_source((np.zeros((4, 2, 2), np.uint8), [0, 1, 2, 3])).train
    object.__setattr__(held, "names", range(n))
    object.__setattr__(held, "labels", np.arange(n) // 2)
    labels = held.labels[Loader(held, 64, 0, per_class=2).indices(0)]
    assert set(Counter(labels.tolist()).values()) == {2}
    assert len(set(labels.tolist())) == 32
