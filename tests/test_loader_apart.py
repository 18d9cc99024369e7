"""Batches in which no two rows are alike: never, nothing twice, all that can be; and as before where all differ."""

import dataclasses
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.data import Loader, Source
from nearfar.data.apart import Apart, joined
from nearfar.text import open_texts

NUMBERS = st.lists(st.integers(0, 12), min_size=1, max_size=120)
PAIRS = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=1, max_size=150)


def source(numbers) -> Source:
    numbers = None if numbers is None else np.asarray(numbers, np.int64)
    n = 60 if numbers is None else len(numbers)
    return Source("held", (1, 1), lambda i: np.asarray(i, np.int32)[:, None, None], [str(i) for i in range(n)],
                  apart=numbers)  # fmt: skip


def check(rows: np.ndarray, numbers: np.ndarray) -> None:
    """No row twice, no number in two rows of a batch. rows (m, B)"""
    assert len(np.unique(rows)) == rows.size
    columns = numbers.reshape(len(numbers), -1)
    for batch in rows:
        counts = Counter(int(number) for row in batch for number in set(columns[row].tolist()))
        assert max(counts.values()) == 1


@settings(max_examples=150, deadline=None)
@given(NUMBERS, st.integers(1, 12), st.integers(0, 99))
def test_one_column_gives_the_most_batches_there_can_be(numbers, batch, seed):
    numbers, order = np.array(numbers), np.random.default_rng(seed).permutation(len(numbers))
    apart = Apart(numbers, batch)
    counts = list(Counter(numbers.tolist()).values())
    can = [m for m in range(len(numbers) + 1) if sum(min(c, m) for c in counts) >= m * batch]
    assert apart.batches == max(can)
    assert apart.is_idle == (max(counts) == 1)
    assert apart.different == len(counts)
    if apart.batches:
        rows = apart.arranged(order)
        assert rows.shape == (apart.batches * batch,)
        check(rows.reshape(-1, batch), numbers)


@settings(max_examples=300, deadline=None)
@given(PAIRS, st.integers(1, 8), st.integers(0, 99))
def test_of_pairs_no_two_share_a_number(numbers, batch, seed):
    """Chains, cliques and rows whose two numbers are one, in all densities: what is promised is kept."""
    numbers = np.array(numbers)
    apart = Apart(numbers, batch)
    assert apart.batches >= Apart(joined(numbers), batch).batches
    if apart.batches:
        rows = apart.arranged(np.random.default_rng(seed).permutation(len(numbers)))
        assert rows.shape == (apart.batches * batch,)
        check(rows.reshape(-1, batch), numbers)


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_joined_is_union_find(numbers):
    numbers = np.array(numbers)
    group = list(range(len(numbers)))
    for a, b in combinations(range(len(numbers)), 2):
        if set(numbers[a].tolist()) & set(numbers[b].tolist()):
            old, new = group[a], group[b]
            group = [new if g == old else g for g in group]
    got = joined(numbers)
    assert [got[a] == got[b] for a, b in combinations(range(len(numbers)), 2)] == [
        group[a] == group[b] for a, b in combinations(range(len(numbers)), 2)
    ]


def test_rows_that_must_change_places_do():
    """Rings, and crowds in which a row is like four others: all in as few batches as are sure."""
    n, batch = 240, 10
    numbers = np.stack([np.arange(n), np.roll(np.arange(n), -1)], 1)  # a ring: each row is like two others
    apart = Apart(numbers, batch)
    assert apart.batches == n // batch
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(n)
        rows = apart.arranged(order)
        check(rows.reshape(-1, batch), numbers)
        assert (rows == order).mean() > 0.5  # most stay in their batch
    crowd = np.stack([np.arange(n) // 3, n + np.arange(n) % 80], 1)
    tight = Apart(crowd, 8)
    for seed in range(50):
        check(tight.arranged(np.random.default_rng(seed).permutation(n)).reshape(-1, 8), crowd)
    assert tight.batches >= n // 8 - 3


@settings(max_examples=60, deadline=None)
@given(NUMBERS | PAIRS, st.integers(1, 6), st.integers(0, 99), st.integers(1, 3), st.integers(0, 10**6))
def test_any_step_can_be_asked_for_and_processes_share(numbers, share, seed, world, step):
    held, batch = source(numbers), share * world
    if not Apart(held.apart, batch).batches:
        with pytest.raises(ValueError, match="--batch"):
            Loader(held, batch, seed)
        return
    loader = Loader(held, batch, seed)
    in_order = [loader.indices(s) for s in range(2 * loader.steps_per_epoch)]
    for epoch in range(2):
        at = epoch * loader.steps_per_epoch
        check(np.stack(in_order[at : at + loader.steps_per_epoch]), held.apart)
    s = step % len(in_order)
    np.testing.assert_array_equal(Loader(held, batch, seed).indices(s), in_order[s])
    parts = [Loader(held, batch, seed, rank, world).batch(s).index for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), in_order[s])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 99), st.booleans())
def test_where_all_differ_nothing_changes(batch, seed, pairs):
    numbers = np.random.default_rng(seed).permutation(120 if pairs else 60)
    plain, held = source(None), source(numbers.reshape(60, -1) if pairs else numbers)
    one, two = Loader(plain, batch, seed), Loader(held, batch, seed)
    assert one.steps_per_epoch == two.steps_per_epoch
    for step in range(2 * one.steps_per_epoch):
        np.testing.assert_array_equal(one.indices(step), two.indices(step))


def test_few_copies_leave_nearly_all_as_it_was():
    numbers = np.arange(1000)
    numbers[500] = 0
    held, order = Apart(numbers, 50), np.random.default_rng(0).permutation(1000)
    assert held.batches == 20
    assert all(len(set(a) & set(b)) >= 48
               for a, b in zip(held.arranged(order).reshape(20, 50), order.reshape(20, 50)))  # fmt: skip


def test_copies_are_in_each_epoch_where_there_is_room_and_take_turns_where_not():
    numbers = np.array([0] * 30 + list(range(1, 31)))
    loader = Loader(source(numbers), 4, 0)  # 30 + 30 rows: 10 batches have 10 of the first and 30 of the others
    assert loader.steps_per_epoch == 10
    seen = Counter(i for step in range(200) for i in loader.indices(step).tolist())
    assert {seen[i] for i in range(30, 60)} == {20}
    assert all(1 <= seen[i] <= 15 for i in range(30))  # 6.7 expected, binomial: 1e-4 in all


def test_the_companions_of_a_row_are_new_each_epoch():
    numbers = np.repeat(np.arange(100), 2)
    held, met = Apart(numbers, 20), Counter()
    for seed in range(300):
        rows = held.arranged(np.random.default_rng(seed).permutation(200)).reshape(-1, 20)
        batch = rows[(rows == 0).any(1)][0]
        met.update(batch[batch != 0].tolist())
    assert met[1] == 0
    times = np.array([met[i] for i in range(2, 200)])
    assert abs(times.mean() - 300 * 19 / 198) < 1e-9
    assert ((times - times.mean()) ** 2 / times.mean()).sum() < 290  # chi-squared of 197: 2e-5


def test_scores_are_the_labels_and_travel_with_their_rows():
    held = dataclasses.replace(source(np.arange(10)), scores=np.linspace(0, 1, 10, dtype=np.float32))
    part = held.subset([7, 2, 5, 5])
    np.testing.assert_array_equal(part.scores, held.scores[[7, 2, 5, 5]])
    np.testing.assert_array_equal(part.apart, [7, 2, 5, 5])
    batch = Loader(part, 3, 0).batch(0)  # 5 and 5 do not meet
    assert sorted(batch.index.tolist())[:2] == [0, 1]
    assert batch.label.dtype == np.float32
    np.testing.assert_array_equal(batch.label, part.scores[batch.index])


def test_too_large_a_batch_is_one_line():
    with pytest.raises(ValueError, match=r"batch 4: too many of the 6 training texts.*--batch 3 "):
        Loader(source([0, 0, 1, 1, 2, 2]), 4, 0)
    with pytest.raises(ValueError, match="larger than the 6 training texts"):
        Loader(source([0, 0, 1, 1, 2, 2]), 7, 0)


@settings(max_examples=100, deadline=None)
@given(NUMBERS | PAIRS)
def test_the_batch_that_is_offered_is_there(numbers):
    numbers = np.array(numbers)
    largest = Apart(numbers, len(numbers)).largest
    assert 1 <= largest <= len(numbers)
    assert Apart(numbers, largest).batches >= 1


def test_a_short_chain_is_no_reason_to_refuse():
    chain = np.stack([np.arange(100), np.arange(1, 101)], 1)  # every other row of it, at most, in a batch
    assert Apart(chain, 10).batches == 10
    assert Apart(chain, 30).batches == 1
    assert Apart(chain, 30).largest == 34
    rows = [Apart(chain, 30).arranged(np.random.default_rng(s).permutation(100)) for s in range(200)]
    for held in rows:
        check(held[None], chain)
    assert len(np.unique(rows)) == 100


def test_on_the_data_s_own_sentences(data):
    """STS-B's pairs repeat their sentences: none meet, and nearly none are left out."""
    from nearfar.text.tokens import _numbers

    numbers = _numbers(open_texts(data / "text" / "stsb" / "train.csv").train, "text")
    held = Apart(numbers, 64)
    check(held.arranged(np.random.default_rng(0).permutation(len(numbers))).reshape(-1, 64), numbers)
    assert len(numbers) // 64 - held.batches <= 1
