"""Methods on text: their losses as their papers write them, what is drawn, what learns, processes as one."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import spawn, split
from torch import nn

from nearfar import dist, methods
from nearfar.encoders.norm import synchronise
from nearfar.encoders.words import text_encoder
from nearfar.methods import words
from nearfar.methods.parts import Progress, pair_ids
from nearfar.training.loop import step_generator

VOCABULARY, WIDTH = 60, 16
TEXT = [name for name in methods.names("text") if getattr(methods.module(name), "CONTENT", "") == "text"]
BOTH = [name for name in methods.names("text") if name not in TEXT]
SCORED = [name for name in TEXT if getattr(methods.module(name), "NEEDS", "") == "scores"]
PAIRED = [name for name in BOTH if getattr(methods.module(name), "PAIRS", False)]


class Specials(NamedTuple):
    unk: int = 0
    cls: int = 1
    sep: int = 2
    mask: int = 3


def encoder_of(kind: str = "transformer", dropout: float = 0.0, mask: int = 3, **settings) -> nn.Module:
    torch.manual_seed(0)
    if kind == "transformer":
        settings = {"layers": 1, "heads": 2} | settings
    encoder = text_encoder(kind, VOCABULARY, width=WIDTH, dropout=dropout, max_length=16, **settings)
    nn.init.normal_(encoder.embedding.weight, std=0.3)
    encoder.specials = Specials(mask=mask)
    return encoder


def build(name: str, classes: int = 3, encoder: dict | None = None, **settings):
    module = methods.module(name)
    known = {f.name: str(f.type) for f in dataclasses.fields(module.Config)}
    small = {"hidden": 12, "dim": 6, "queue": 16, "prototypes": 8, "slices": 8, "predictor_hidden": 12, "heads": 2,
             "dropout": 0.0, "frozen_epochs": 0.0, "warmup_epochs": 0.1}  # fmt: skip
    settings = {k: v for k, v in small.items() if k in known and known[k] in ("int", "float")} | settings
    if "clusters" in known:
        settings = {"clusters": "4"} | settings
    made = encoder_of(**{"causal": getattr(module, "CAUSAL", False)} | (encoder or {}))
    return module.Method(made, module.Config(**settings), classes, 50).double()


def texts(n: int = 10, seed: int = 0, longest: int = 9) -> torch.Tensor:
    """[CLS] words [SEP], of several lengths."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(4, VOCABULARY, (n, longest), generator=g)
    x[:, 0] = 1
    lengths = torch.randint(3, longest + 1, (n,), generator=g)
    lengths[0] = longest
    x[torch.arange(n), lengths - 1] = 2
    return torch.where(torch.arange(longest) < lengths[:, None], x, -1)


def progress(at: int = 0) -> Progress:
    return Progress(at, at / 10, at / 5, step_generator(0, at))


def scores(n: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 6, (n,), generator=torch.Generator().manual_seed(seed)) / 5  # ties among them


def labels_for(name: str, n: int = 10, seed: int = 0) -> torch.Tensor | None:
    if name in SCORED:
        return scores(n, seed)
    return torch.arange(n) % 3 if methods.module(name).SUPERVISED else None


def step(method, views, at: int = 0, labels=None):
    return method(views, torch.arange(len(views[0])), labels, progress(at))


def value(x: torch.Tensor) -> float:
    return float(x.detach())


def views_for(method, n: int = 10, seed: int = 0) -> list[torch.Tensor]:
    return [texts(n, 100 * seed + v) for v in range(method.views)]


# Each paper's loss, naively.


def unit(x):
    return F.normalize(x, dim=1)


def infonce(a, keys, tau, positives):
    return F.cross_entropy(unit(a) @ unit(keys).T / tau, positives)


@pytest.mark.parametrize(("count", "weight", "symmetric"), [(2, 0.0, False), (2, 0.0, True), (3, 0.0, False),
                                                            (3, 0.7, False), (3, -1.5, True)])  # fmt: skip
def test_simcse_is_equation_five(count, weight, symmetric):
    method = build("simcse", hard_negative_weight=weight, symmetric=symmetric, temperature=0.1)
    views = [texts(seed=v) for v in range(count)]
    a, p, *n = (method.project(method.encoder(x)) for x in views)
    logits = unit(a) @ unit(torch.cat([p, *n])).T / 0.1  # (B, (V - 1)·B)
    if n:
        logits[:, 10:] += weight * torch.eye(10, dtype=torch.float64)
    want = F.cross_entropy(logits, torch.arange(10))
    if symmetric:
        want = (want + infonce(p, a, 0.1, torch.arange(10))) / 2
    got = step(method, views)
    assert value(got.loss) == pytest.approx(value(want), rel=1e-12)
    assert got.stats["chance"] == pytest.approx(math.log((count - 1) * 10))
    grads = [torch.autograd.grad(loss, method.encoder.embedding.weight)[0] for loss in (got.loss, want)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_simcse_leaves_out_likely_positives(weight):
    method, views = build("simcse"), [texts(seed=v) for v in range(3)]
    a, *keys = (unit(method.project(method.encoder(x))) for x in views)
    s = a @ torch.cat(keys).T  # (B, 2B)
    above = float(s.detach().median())
    method = build("simcse", exclude_above=above, hard_negative_weight=weight, temperature=0.1)
    out = (s > above) & ~torch.eye(10, 20, dtype=torch.bool)
    assert 0 < int(out[:, 10:].diagonal().sum()) < 10
    logits = s / 0.1
    logits[:, 10:] += weight * torch.eye(10, dtype=torch.float64)
    want = F.cross_entropy(logits.masked_fill(out, -math.inf), torch.arange(10))
    assert value(step(method, views).loss) == pytest.approx(value(want), rel=1e-12)


def test_simcse_cut_short_and_with_masked_words():
    method = build("simcse", head=0, matryoshka="4, 8,16", temperature=0.1)
    views = [texts(), texts(seed=1)]
    a, p = (method.encoder(x) for x in views)
    want = sum(infonce(a[:, :w], p[:, :w], 0.1, torch.arange(10)) for w in (4, 8, 16)) / 3
    assert value(step(method, views).loss) == pytest.approx(value(want), rel=1e-12)
    plain, more = build("simcse", temperature=0.1), build("simcse", mlm=0.1, temperature=0.1)
    more.load_state_dict(plain.state_dict(), strict=False)
    told = naive_masked(more, views[0], 0.15)
    assert value(step(more, views).loss) == pytest.approx(value(step(plain, views).loss + 0.1 * told), rel=1e-9)


def naive_masked(method, x, share):
    """Logits of every place, cross-entropy on the chosen ones."""
    hidden = words.mask(x, VOCABULARY, method.encoder.specials, share, progress().generator)
    assert bool(hidden.chosen.any())
    head = method.head
    h = head.norm(F.gelu(head.dense(method.encoder.tokens(hidden.x))))  # (T, width)
    logits = h @ method.encoder.embedding.weight.T + head.bias
    return F.cross_entropy(logits, torch.where(hidden.chosen, x, -100)[x >= 0])


@pytest.mark.parametrize("contrast", [0.0, 0.5])
def test_masked_lm_is_cross_entropy_on_what_was_hidden(contrast):
    method = build("masked-lm", share=0.3, contrast=contrast)
    with torch.no_grad():
        method.head.bias.normal_()
    views = views_for(method)
    want = naive_masked(method, views[0], 0.3)
    if contrast:
        want = want + contrast * infonce(*(method.encoder(x) for x in views), 0.05, torch.arange(10))
    got = step(method, views)
    assert value(got.loss) == pytest.approx(value(want), rel=1e-12)
    assert got.stats["chance"] == pytest.approx(math.log(VOCABULARY) + contrast * math.log(10))
    for p in (method.encoder.embedding.weight, method.head.bias):
        grads = [torch.autograd.grad(loss, p, retain_graph=True)[0] for loss in (got.loss, want)]
        torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


def test_what_is_hidden_is_what_bert_hides():
    g, specials = torch.Generator().manual_seed(0), Specials()
    x = torch.randint(0, VOCABULARY, (400, 50), generator=g)
    x[:, 30:] = torch.where(torch.arange(400)[:, None] % 2 == 0, -1, x[:, 30:])
    hidden = words.mask(x, VOCABULARY, specials, 0.15, g)
    plain = x >= 4
    assert not (hidden.chosen & ~plain).any()
    assert torch.equal(hidden.x[~hidden.chosen], x[~hidden.chosen])
    n, count = int(plain.sum()), int(hidden.chosen.sum())
    assert count / n == pytest.approx(0.15, abs=4 * math.sqrt(0.15 * 0.85 / n))
    now, was = hidden.x[hidden.chosen], x[hidden.chosen]
    swapped = 0.1 * (1 - 1 / VOCABULARY)
    for share, want in (((now == specials.mask), 0.8 + 0.1 / VOCABULARY), ((now == was), 0.1 + 0.1 / VOCABULARY),
                        ((now != was) & (now != specials.mask), swapped - 0.1 / VOCABULARY)):  # fmt: skip
        assert float(share.double().mean()) == pytest.approx(want, abs=4 * math.sqrt(want * (1 - want) / count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_next_token_cross_entropy_is_info_nce_against_the_vocabulary(dtype):
    method = build("next-token").to(dtype)
    x = texts()
    h = torch.zeros(*x.shape, WIDTH, dtype=dtype)
    h[x >= 0] = method.encoder.tokens(x)
    logits = h @ method.encoder.embedding.weight.T  # (B, L, V)
    follows = torch.cat([x[:, 1:], x.new_full((len(x), 1), -1)], 1)
    want = F.cross_entropy(logits.flatten(0, 1), follows.flatten(), ignore_index=-1)
    got = step(method, [x])
    assert value(got.loss) == pytest.approx(value(want), abs=1e-6)
    for p in method.parameters():
        grads = [torch.autograd.grad(loss, p, retain_graph=True)[0] for loss in (got.loss, want)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_next_token_sees_nothing_of_what_follows():
    method = build("next-token")
    x = texts()
    changed = x.clone()
    changed[0, -2:] = 50
    h, there = (method.encoder.tokens(y)[:7] for y in (x, changed))
    torch.testing.assert_close(h, there, rtol=1e-12, atol=1e-12)


def test_tsdae_is_a_transformer_decoder_on_one_vector():
    """The decoder is PyTorch's with cross-attention on s; the sentence's map is that attention's values and output."""
    method = build("tsdae", delete=0.5)
    ours, theirs = method.decoder, nn.TransformerDecoderLayer(WIDTH, 2, 4 * WIDTH, 0.0, "gelu", batch_first=True,
                                                              norm_first=True).double()  # fmt: skip
    cross, own = theirs.multihead_attn, theirs.self_attn
    with torch.no_grad():
        own.in_proj_weight.copy_(ours.qkv.weight), own.in_proj_bias.copy_(ours.qkv.bias)
        own.out_proj.weight.copy_(ours.out.weight), own.out_proj.bias.copy_(ours.out.bias)
        for to, of in ((theirs.linear1, ours.mlp[0]), (theirs.linear2, ours.mlp[2]), (theirs.norm1, ours.norms[0]),
                       (theirs.norm3, ours.norms[1])):  # fmt: skip
            to.load_state_dict(of.state_dict())
        values, bias = cross.in_proj_weight[2 * WIDTH :], cross.in_proj_bias[2 * WIDTH :]
        method.sentence.weight.copy_(cross.out_proj.weight @ values)
        method.sentence.bias.copy_(cross.out_proj.weight @ bias + cross.out_proj.bias)
        method.start.normal_()
    x = texts()
    s = method.encoder(words.delete(x, Specials(), 0.5, progress().generator))  # (B, d)
    y = torch.cat([method.start.expand(10, 1, -1), method.encoder.embedding(x[:, :-1].clamp(min=0))], 1)
    y = theirs(y + method.places.weight[: x.shape[1]], s[:, None], tgt_is_causal=True,
               tgt_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=torch.float64))  # fmt: skip
    head = method.head
    logits = head.norm(F.gelu(head.dense(y))) @ method.encoder.embedding.weight.T + head.bias
    want = F.cross_entropy(logits.flatten(0, 1), torch.where(x == 1, -1, x).flatten(), ignore_index=-1)
    got = step(method, [x])
    assert value(got.loss) == pytest.approx(value(want), rel=1e-12)


def test_deletion_keeps_the_order_the_specials_and_a_word():
    x = texts(500, longest=12)
    left = words.delete(x, Specials(), 0.6, torch.Generator().manual_seed(1))
    kept = total = 0
    for row, now in zip(x.tolist(), left.tolist()):
        row, now = ([t for t in r if t >= 0] for r in (row, now))
        assert [now[0], now[-1]] == [1, 2]
        assert len(now) >= 3
        rest = iter(row)
        assert all(t in rest for t in now)  # a subsequence
        if len(row) > 8:  # where the one that always stays weighs little
            kept, total = kept + len(now) - 2, total + len(row) - 2
    assert kept / total == pytest.approx(0.4, abs=0.03)
    assert torch.equal(words.delete(x, Specials(), 0.0, torch.Generator()), x)
    bare = torch.tensor([[9, 8, -1], [1, 2, -1]])  # no specials; nothing but specials
    assert [(r >= 0).sum().item() for r in words.delete(bare, Specials(), 1.0, torch.Generator())] == [1, 2]


@pytest.mark.parametrize("settings", [{}, {"similarity": "cosine", "temperature": 0.1}, {"two_towers": True},
                                      {"predictor": True}, {"symmetric": False, "predictor": True}])  # fmt: skip
def test_quick_thoughts_is_a_softmax_over_the_batch(settings):
    method = build("quick-thoughts", **settings)
    views = views_for(method)
    if method.other is not None:
        nn.init.normal_(method.other.embedding.weight)
    g = method.other or method.encoder
    (f_a, f_b), (g_a, g_b) = ([e(x) for x in views] for e in (method.encoder, g))
    if method.predictors:
        f_a, f_b = (w(z) for w, z in zip((*method.predictors, method.predictors[0]), (f_a, f_b)))
    if settings.get("similarity"):
        f_a, f_b, g_a, g_b = (unit(z) for z in (f_a, f_b, g_a, g_b))
    target, tau = torch.arange(10), settings.get("temperature", 1.0)
    ways = [F.cross_entropy(f_a @ g_b.T / tau, target), F.cross_entropy(f_b @ g_a.T / tau, target)]
    want = sum(ways) / 2 if settings.get("symmetric", True) else ways[0]
    assert value(step(method, views).loss) == pytest.approx(value(want), rel=1e-12)


def order(values, y):
    """log(1 + Σ exp(value_k - value_l)) over pairs of pairs of which l has the higher score."""
    terms = [math.exp(values[k] - values[m]) for k in range(len(y)) for m in range(len(y)) if y[k] < y[m]]
    return math.log1p(sum(terms))


def test_cosent_and_angle_are_their_sums():
    y, views = scores(), [texts(), texts(seed=1)]
    method = build("cosent")
    a, b = (unit(method.encoder(x)) for x in views)
    cosines = ((a * b).sum(1) / 0.05).tolist()
    got = step(method, views, labels=y)
    assert value(got.loss) == pytest.approx(order(cosines, y.tolist()), rel=1e-9)
    assert float(got.stats["chance"]) == pytest.approx(order([0.0] * 10, y.tolist()))
    method = build("angle", contrast_weight=0.7, cosine_weight=0.3, angle_weight=2.0)
    same = (y >= 0.5).nonzero()[:, 0]
    told = step(method, views, labels=y)
    contrast = infonce(a[same], b, 0.05, same)
    stats = {k: float(v) for k, v in told.stats.items()}
    assert stats["cosine"] == pytest.approx(order(cosines, y.tolist()), rel=1e-9)
    assert stats["contrast"] == pytest.approx(value(contrast), rel=1e-9)
    assert value(told.loss) == pytest.approx(0.3 * stats["cosine"] + 0.7 * stats["contrast"] + 2 * stats["angle"])


# Methods that learn from images and text alike.


@pytest.mark.parametrize("kind", ["transformer", "gru", "bag"])
@pytest.mark.parametrize("name", TEXT + BOTH)
def test_it_runs_on_tokens(name, kind):
    """Three steps: finite, every parameter that takes a gradient has one."""
    if kind == "bag" and name in ("masked-lm", "next-token"):
        pytest.skip("tokens of a bag see nothing around them")
    method = build(name, encoder={"kind": kind} | ({"pooling": "attention"} if kind == "transformer" else {}))
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
    for at in range(3):
        out = step(method, views_for(method, 12, at), at, labels_for(name, 12, at))
        optimizer.zero_grad()
        out.loss.backward()
        assert bool(out.loss.isfinite())
        assert len(out.projections) == len(out.groups)
        assert all(bool(torch.as_tensor(v).isfinite()) for v in out.stats.values())
        missing = [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing
        optimizer.step()
        method.after_step(progress(at))
    assert float(method.encoder.embedding.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", ["masked-lm", "next-token", "tsdae"])
def test_of_pairs_all_texts_are_learnt_from(name):
    method, views = build(name), [texts(), texts(seed=1)]
    got, want = step(method, views), step(method, [torch.cat(views)])
    assert value(got.loss) == value(want.loss)
    assert torch.equal(got.groups, torch.arange(10).repeat(2))


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("count", [2, 3])
def test_given_pairs_take_the_place_of_labels(name, count):
    """A pair is a class of its own; an explicit negative, too."""
    method = build(name)
    views = [texts(seed=v) for v in range(count)]
    got = step(method, views)
    ids = torch.cat([torch.arange(10), torch.arange(10), *(100 + 10 * v + torch.arange(10) for v in range(count - 2))])
    want = method([torch.cat(views)], torch.arange(10 * count), ids, progress())
    assert value(got.loss) == pytest.approx(value(want.loss), rel=1e-12)
    assert float(got.stats["chance"]) == pytest.approx(float(want.stats["chance"]), rel=1e-6)
    assert torch.equal(got.groups, pair_ids(torch.arange(10), count))


def test_given_pairs_with_scores():
    y, views = scores(), [texts(), texts(seed=1)]
    method = build("margin-contrastive", margin=3.0)
    a, b = (method.project(method.encoder(torch.cat(views)))).chunk(2)
    d, same = (a - b).norm(dim=1), y >= 0.5
    want = (torch.where(same, d.square(), (3.0 - d).clamp(min=0).square()) / 2).mean()
    assert value(step(method, views, labels=y).loss) == pytest.approx(value(want), rel=1e-9)
    method = build("logistic")
    a, b = (unit(z) for z in method.project(method.encoder(torch.cat(views))).chunk(2))
    logits = (a * b).sum(1) / 0.1 - 10.0
    want = F.binary_cross_entropy_with_logits(logits, y.double())
    assert value(step(method, views, labels=y).loss) == pytest.approx(value(want), rel=1e-6)
    for name in ("triplet", "n-pair"):
        with pytest.raises(ValueError, match=f"{name} does not learn from scores: use --method cosent"):
            step(build(name), views, labels=y)


@pytest.mark.parametrize("name", TEXT)
def test_mixed_precision(name):
    exact = step(build(name), views_for(build(name)), labels=labels_for(name))
    method = build(name).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = step(method, views_for(method), labels=labels_for(name))
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert value(out.loss) == pytest.approx(value(exact.loss), rel=0.1)


@pytest.mark.parametrize(("name", "x", "settings"), [
    ("masked-lm", texts(), {"share": 1e-9}), ("next-token", torch.full((4, 1), 9), {}),
    ("masked-lm", torch.tensor([[1, 2], [1, 2]]), {}), ("tsdae", torch.tensor([[1, -1], [1, -1]]), {}),
])  # fmt: skip
def test_nothing_to_tell_is_a_loss_of_zero(name, x, settings):
    method = build(name, **settings)
    out = step(method, [x])
    out.loss.backward()
    assert value(out.loss) == 0
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters())


# A toy language: topics with words of their own.


def corpus(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight topics with seven words each; a text is [CLS], four words of its topic in a row, [SEP]. -> (n, 6), (n,)"""
    g = torch.Generator().manual_seed(seed)
    topic = torch.randint(0, 8, (n,), generator=g)
    first = torch.randint(0, 7, (n, 1), generator=g)
    body = 4 + 7 * topic[:, None] + (first + torch.arange(4)) % 7
    return torch.cat([torch.ones(n, 1), body, torch.full((n, 1), 2)], 1).long(), topic


def mates(topic: torch.Tensor, seed: int) -> torch.Tensor:
    """Another text of each one's topic. (n,) -> (n, 6)"""
    x, its = corpus(300, 10_000 + seed)
    return x[(its == topic[:, None]).int().argmax(1)]


LEARNS = {"simcse": 0.75, "masked-lm": 0.6, "next-token": 0.6, "tsdae": 0.5, "quick-thoughts": 0.85, "cosent": 0.7,
          "angle": 0.8}  # fmt: skip


@pytest.mark.parametrize("name", TEXT)
def test_it_learns(name):
    """Two hundred steps on a toy language: the loss falls well below that of guessing."""
    noise = {"dropout": 0.1} if name == "simcse" else {}
    settings = methods.module(name).PRESETS["small"].get("settings", {})
    method = build(name, encoder=noise, **settings).float()
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01)
    shares = []
    for at in range(200):
        x, topic = corpus(32, at)
        views, labels = [x] * method.views, None
        if name in SCORED:  # half of the pairs are of one topic
            labels = (torch.arange(32) % 2).float()
            views = [x, torch.where(labels[:, None] == 1, mates(topic, at), corpus(32, 5000 + at)[0])]
        if name == "quick-thoughts":
            views = [x, mates(topic, at)]
        out = step(method, views, at, labels)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        method.after_step(progress(at))
        shares.append(float(out.loss.detach()) / float(out.stats["chance"]))
    assert np.mean(shares[-20:]) < LEARNS[name]


# Several processes are one: unequal parts, texts of unequal length, a few steps, all weights.

MANY = {name: {} for name in TEXT} | {
    "moco": {}, "simclr": {}, "swav": {}, "triplet": {}, "margin-contrastive": {}, "logistic": {}, "n-pair": {},
}  # fmt: skip
VARIANTS = {"simcse": {"hard_negative_weight": 0.5, "mlm": 0.3}, "masked-lm": {"contrast": 0.5},
            "quick-thoughts": {"two_towers": True, "predictor": True}}  # fmt: skip


def train(name: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    method = build(name, encoder={"pooling": "attention"}, **VARIANTS.get(name, {}))
    method.batch_norm = "whole"
    model, mine = method, split(10, dist.world())[dist.rank()]
    if dist.world() > 1:
        model = nn.parallel.DistributedDataParallel(synchronise(method), forward_sync_buffers=False)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.02)
    losses = []
    for at in range(2):
        count = 3 if name == "simcse" else 2 if name in PAIRED else method.views
        views = [texts(10, 50 * at + v)[mine] for v in range(count)]
        longest = max(int((x >= 0).sum(1).max()) for x in views)
        labels = scores(10, at)[mine] if name in SCORED or (name == "logistic" and at) else None
        out = model([x[:, :longest] for x in views], torch.arange(10)[mine], labels, progress(at))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        method.after_step(progress(at))
        losses.append(value(out.loss))
    return losses, method.state_dict()


def train_all(names: list[str]) -> dict:
    return {name: train(name) for name in names}


def test_processes_are_one():
    one = train_all(list(MANY))
    for rank, got in enumerate(spawn(2, train_all, list(MANY))):
        for name, (losses, held) in one.items():
            np.testing.assert_allclose(got[name][0], losses, rtol=1e-6, err_msg=f"{name}, process {rank}")
            for key, value in held.items():
                there = got[name][1][key]
                assert torch.allclose(there.double(), value.double(), rtol=1e-5, atol=1e-7), f"{name}: {key}"


# What it says of itself, and what is wrong, in one line.


@pytest.mark.parametrize("name", TEXT)
def test_it_says_what_it_needs(name):
    module = methods.module(name)
    assert {"small", "paper"} <= set(module.PRESETS)
    assert not module.SUPERVISED
    assert getattr(module, "NEEDS", "pairs") in ("pairs", "scores", "neighbours")
    for preset in module.PRESETS.values():
        module.Config(**preset.get("settings", {}))
    assert name not in methods.names("image")


def test_some_methods_are_of_images_alone():
    assert {"cpc", "densecl", "ibot", "pirl"} == set(methods.names("image")) - set(methods.names("text"))
    assert set(methods.names()) == set(methods.names("image")) | set(methods.names("text"))


@pytest.mark.parametrize(("name", "settings", "said"), [
    ("simcse", {"temperature": 0.0}, "temperature 0.0 must be above 0"),
    ("simcse", {"matryoshka": "8,x", "head": 0}, "matryoshka '8,x': give widths with commas between"),
    ("simcse", {"matryoshka": "8,0", "head": 0}, "matryoshka '8,0': give widths with commas between"),
    ("simcse", {"matryoshka": "8"}, "matryoshka '8' cuts the features themselves: give head 0 with it"),
    ("simcse", {"matryoshka": "8,32", "head": 0}, "matryoshka '8,32': the encoder has 16 features, give no more"),
    ("simcse", {"exclude_above": 2.0}, "exclude_above 2.0 is a cosine: give -1 to 1"),
    ("simcse", {"hard_negative_weight": math.nan}, "hard_negative_weight nan must be a number"),
    ("simcse", {"mlm": -1.0}, "mlm = -1.0 must be at least 0"),
    ("masked-lm", {"share": 0.0}, "share 0.0 must be above 0"),
    ("masked-lm", {"share": 1.5}, "share 1.5 must lie between 0 and 1"),
    ("tsdae", {"heads": 3}, "heads 3 do not divide the embedding's width 16: give another number"),
    ("quick-thoughts", {"similarity": "euclidean"}, "similarity 'euclidean': give 'dot' or 'cosine'"),
    ("angle", {"cosine_weight": 0.0, "contrast_weight": 0.0, "angle_weight": 0.0}, "are all 0: nothing is learnt"),
    ("margin-contrastive", {"positive_above": 2.0}, "positive_above 2.0 must lie between 0 and 1"),
])  # fmt: skip
def test_wrong_settings_are_one_line(name, settings, said):
    with pytest.raises(ValueError, match=said) as error:
        build(name, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "settings"), [("masked-lm", {}), ("simcse", {"mlm": 0.1})])
def test_a_tokeniser_without_a_mask_is_one_line(name, settings):
    module = methods.module(name)
    with pytest.raises(ValueError, match=f"{name}.* hides tokens behind a mask token and this tokeniser has none"):
        module.Method(encoder_of(mask=-1), module.Config(**settings))


def test_a_bag_sees_nothing_around_a_token():
    for name, settings in (("masked-lm", {}), ("simcse", {"mlm": 0.1})):
        with pytest.raises(ValueError, match=f"{name}.* tells hidden tokens from those around them, which a bag"):
            build(name, encoder={"kind": "bag"}, **settings)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "attention", "max"])
def test_what_is_watched_are_the_features(pooling):
    method, x = build("next-token", encoder={"pooling": pooling}), texts()
    torch.testing.assert_close(step(method, [x]).features, method.encoder(x).detach())
