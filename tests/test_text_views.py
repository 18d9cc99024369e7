"""Views of texts against loops over tokens on the same draws, by what must hold of them, and by how often."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearfar.text import TextOptions
from nearfar.text.tokenizer import Specials
from nearfar.views.text import TextViews

LONGEST, VOCABULARY = 14, 100
OURS, NONE = Specials(), Specials(-1, -1, -1, -1)
NOISES = st.fixed_dictionaries({}, optional={
    "crop": st.floats(0.05, 0.95), "delete": st.floats(0.05, 0.95), "repeat": st.floats(0.05, 0.95),
    "shuffle": st.integers(2, 6), "mask": st.floats(0.05, 0.95)})  # fmt: skip


def batch(lengths, slots=1, specials=OURS, seed=0):
    """Texts of so many words, [CLS] and [SEP] around them where there are such. -> (B, S, L)"""
    rng, rows = np.random.default_rng(seed), []
    for n in np.repeat(lengths, slots):
        words = rng.integers(10, VOCABULARY, n).tolist()
        rows.append([specials.cls, *words, specials.sep] if specials.cls >= 0 else words or [10])
    longest = max(map(len, rows))
    x = np.array([row + [-1] * (longest - len(row)) for row in rows], np.int32)
    return x.reshape(len(lengths), slots, longest)


def make(views=2, specials=OURS, rank=0, world=1, **noise):
    return TextViews(TextOptions(max_length=LONGEST, **noise), views, specials, VOCABULARY, rank, world)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def naive(x, noise, views, specials, seed):
    """One text after the other, one token after the other, on the same draws. -> V lists of B lists"""
    held, generator = TextOptions(max_length=LONGEST, **noise), seeded(seed)
    b, v = len(x), views if x.shape[1] == 1 else x.shape[1]
    rows = [[[int(t) for t in (x[i, j] if x.shape[1] > 1 else x[i, 0]) if t >= 0] for j in range(v)] for i in range(b)]
    draw = lambda n: torch.rand(b, v, n, generator=generator, dtype=torch.float64).tolist()  # noqa: E731
    u = {name: draw(n) for name, n in (("crop", 2), ("delete", LONGEST), ("repeat", LONGEST + 1), ("shuffle", LONGEST),
                                       ("mask", LONGEST)) if getattr(held, name)}  # fmt: skip

    def changed(row, i, j):
        for name in u:
            r = u[name][i][j]
            first = 1 if row and row[0] == specials.cls else 0
            last = len(row) - 1 if len(row) > first and row[-1] == specials.sep else len(row)
            head, own, tail = row[:first], row[first:last], row[last:]
            n, place = len(own), range(first, last)
            if name == "crop" and n:
                cut = int(r[0] * (min(int(held.crop * n + 1e-9), n - 1) + 1))
                start = int(r[1] * (cut + 1))
                own = own[start : start + n - cut]
            elif name == "delete" and n:
                kept = [t for t, p in zip(own, place) if r[p] >= held.delete]
                own = kept or [own[max(range(n), key=lambda k: r[first + k])]]
            elif name == "repeat":
                times = min(int(r[0] * (min(max(int(held.repeat * n + 1e-9), 2), n) + 1)), LONGEST - len(row))
                twice = sorted(range(n), key=lambda k: r[1 + first + k])[:times]
                own = [t for k, t in enumerate(own) for _ in range(1 + (k in twice))]
            elif name == "shuffle":
                out = []
                for at in range(0, n, held.shuffle):
                    span = range(at, min(at + held.shuffle, n))
                    out += [own[k] for k in sorted(span, key=lambda k: r[first + k])]
                own = out
            elif name == "mask":
                own = [specials.mask if r[p] < held.mask else t for t, p in zip(own, place)]
            row = head + own + tail
        return row

    return [[changed(rows[i][j], i, j) for i in range(b)] for j in range(v)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, LONGEST - 2), min_size=1, max_size=8), st.integers(1, 3), NOISES,
       st.sampled_from([OURS, Specials(3, 5, 5, 4), NONE]), st.integers(0, 99))  # fmt: skip
def test_all_noise_is_as_one_text_after_the_other_has_it(lengths, slots, noise, specials, seed):
    if specials is NONE:
        noise.pop("mask", None)
    x = batch(lengths, slots, specials, seed)
    made = make(2, specials, **noise)
    got = made(x, seeded(seed))
    want = naive(x, noise, 2, specials, seed)
    assert len(got) == len(want) == (2 if slots == 1 else slots)
    longest = max(len(row) for view in want for row in view)
    for view, rows in zip(got, want):
        assert view.dtype == torch.int64
        assert view.is_contiguous()
        assert view.tolist() == [row + [-1] * (longest - len(row)) for row in rows]
    assert made.is_plain == (not noise)
    assert min(len(row) for view in want for row in view) >= 1


def test_without_noise_views_are_copies_and_the_generator_is_left_alone():
    x, generator = batch([3, 5, 0]), seeded()
    before = generator.get_state()
    views = make(3)(x, generator)
    assert len(views) == 3
    for view in views:
        np.testing.assert_array_equal(view.numpy(), x[:, 0])
    assert torch.equal(generator.get_state(), before)
    pair = make(5)(batch([3, 4], slots=3), generator)
    np.testing.assert_array_equal(torch.stack(pair, 1).numpy(), batch([3, 4], slots=3))
    assert torch.cat(pair).shape == (6, 6)


@pytest.mark.parametrize("slots", [1, 2])
def test_two_processes_see_what_one_sees_whatever_their_widths(slots):
    noise = {"crop": 0.5, "delete": 0.3, "repeat": 0.5, "shuffle": 3, "mask": 0.2}
    x = batch([12, 11, 9, 12, 1, 2, 0, 3], slots)
    whole = make(**noise)(x, seeded(7))
    for rank in range(2):
        part = x[rank * 4 : rank * 4 + 4]
        part = part[:, :, : (part >= 0).sum(2).max()]
        views = make(rank=rank, world=2, **noise)(part, seeded(7))
        for one, view in zip(whole, views):
            mine = one[rank * 4 : rank * 4 + 4]
            width = max(mine.shape[1], view.shape[1])
            wide = [torch.nn.functional.pad(t, (0, width - t.shape[1]), value=-1) for t in (mine, view)]
            assert torch.equal(*wide)
        assert views[0].shape == views[1].shape


def test_views_differ_and_come_from_the_generator():
    x, noise = batch([10] * 50), {"delete": 0.3}
    a, b = make(**noise)(x, seeded(1))
    again = make(**noise)(torch.as_tensor(x), seeded(1))
    assert torch.equal(a, again[0])
    assert torch.equal(b, again[1])
    assert sum(p.tolist() == q.tolist() for p, q in zip(a, b)) < 5
    assert not torch.equal(a, make(**noise)(x, seeded(2))[0])


def close(times: int, n: int, p: float) -> bool:
    """Within five standard deviations of a binomial."""
    return abs(times - n * p) < 5 * (n * p * (1 - p)) ** 0.5


def test_how_often():
    n, words = 4000, 10
    x = np.broadcast_to(np.array([1, *range(10, 10 + words), 2]), (n, 1, words + 2))
    kept = [len(row) for row in _rows(make(1, delete=0.3)(x, seeded())[0])]
    assert close(sum(kept), n * words, 0.7)
    masked = make(1, mask=0.15)(x, seeded())[0]
    assert close(int((masked == 3).sum()), n * words, 0.15)
    assert ((masked == 3).sum(0)[1:-1] > 0).all()
    spans = Counter(map(tuple, _rows(make(1, crop=0.4)(x, seeded())[0])))
    assert {len(s) for s in spans} == {6, 7, 8, 9, 10}  # uniform in length, then in place
    assert len(spans) == 1 + 2 + 3 + 4 + 5
    for span, times in spans.items():
        assert close(times, n, 1 / 5 / (11 - len(span)))
        assert list(span) == list(range(span[0], span[0] + len(span)))
    lengths = Counter(len(row) for row in _rows(make(1, repeat=0.4)(x, seeded())[0]))
    assert set(lengths) == {10, 11, 12}  # 4 would be drawn, 14 tokens are the most
    assert close(lengths[10], n, 1 / 5)
    assert close(lengths[12], n, 3 / 5)
    orders = Counter(tuple(row[:3]) for row in _rows(make(1, shuffle=3)(x, seeded())[0]))
    assert len(orders) == 6
    assert all(close(times, n, 1 / 6) for times in orders.values())
    assert {row[9] for row in _rows(make(1, shuffle=3)(x, seeded())[0])} == {19}  # alone in its span


def _rows(view):
    """What is between [CLS] and [SEP], which stand where they stood."""
    rows = [[t for t in row if t >= 0] for row in view.tolist()]
    assert all(row[0] == 1 and row[-1] == 2 for row in rows)
    return [row[1:-1] for row in rows]


def test_short_texts_repeat_too_and_nothing_is_lost():
    x = batch([1, 2, 3], seed=3)
    seen = [set() for _ in range(3)]
    for seed in range(200):
        for held, row, own in zip(seen, _rows(make(1, repeat=0.1)(x, seeded(seed))[0]), x[:, 0].tolist()):
            held.add(len(row))
            assert sorted(set(row)) == sorted({t for t in own if t > 3})
    assert seen == [{1, 2}, {2, 3, 4}, {3, 4, 5}]  # up to two words, as the paper has it


def test_without_a_mask_token_the_unknown_one_stands_in():
    views = make(1, Specials(7, 1, 2, -1), mask=0.5)(batch([10] * 20), seeded())
    assert 60 < int((views[0] == 7).sum()) < 140


@pytest.mark.parametrize(("call", "said"), [
    (lambda: make(0), "0 views of a text"),
    (lambda: make(specials=NONE, mask=0.1), "neither"),
    (lambda: make()(np.zeros((2, 3), np.int32), seeded()), "give token ids as"),
    (lambda: make()(np.zeros((2, 1, 3), np.float32), seeded()), "give token ids as"),
    (lambda: make()(np.zeros((2, 1, LONGEST + 1), np.int32), seeded()), "15 tokens, where text.max_length is 14"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
