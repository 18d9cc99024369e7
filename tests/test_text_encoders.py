"""Encoders of text against padded float64 oracles, nn.GRU, transformers' BertModel and PyTorch's EmbeddingBag."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nearfar.encoders.bert_names import bert_config, to_bert_state_dict
from nearfar.encoders.packing import drop, pack
from nearfar.encoders.pooling import KINDS, Pooling
from nearfar.encoders.words import text_encoder
from nearfar.losses.caching import in_chunks

V, LENGTHS = 30, (5, 1, 12, 3, 7, 7, 2, 12, 9)
ALL = [("bag", False), ("gru", False), ("lstm", False), ("gru", True), ("transformer", False), ("transformer", True)]


def batch(lengths=LENGTHS, seed=0, more=0):
    """Rows of these lengths. -> (B, L + more) int64, -1 at the ends"""
    g = torch.Generator().manual_seed(seed)
    x = torch.full((len(lengths), max(lengths) + more), -1)
    for row, n in zip(x, lengths):
        row[:n] = torch.randint(V, (n,), generator=g)
    return x


def make(name="transformer", causal=False, pooling="", **changes):
    torch.manual_seed(0)
    small = {"transformer": {"layers": 2, "heads": 2}, "bag": {}}.get(name, {"layers": 2})
    encoder = text_encoder(name, V, width=8, pooling=pooling, causal=causal, **small, **changes).double()
    with torch.no_grad():
        for p in encoder.parameters():  # far enough from 0 that mistakes show
            p.add_(torch.randn_like(p) * 0.3)
    return encoder.eval()


def gradients(encoder, out):
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    held = torch.autograd.grad((out * weight).sum(), list(encoder.parameters()), allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in held]


def close(a, b, tol=1e-10):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


@pytest.mark.parametrize("pooling", KINDS)
@pytest.mark.parametrize("causal", [False, True])
def test_packed_transformer_equals_padded(pooling, causal):
    encoder, x = make(causal=causal, pooling=pooling), batch()
    packed, padded = encoder(x), encoder.padded(x.clamp(min=0), x >= 0)
    close(packed, padded)
    for a, b in zip(gradients(encoder, packed), gradients(encoder, padded)):
        close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_pooling_equals_a_loop_over_rows(kind):
    x = batch()
    torch.manual_seed(0)
    pool, h = Pooling(kind, 4).double(), torch.randn(sum(LENGTHS), 4, dtype=torch.float64)
    row = (x >= 0).nonzero()[:, 0]
    ways = {"mean": lambda t: t.mean(0), "cls": lambda t: t[0], "last": lambda t: t[-1], "max": lambda t: t.amax(0),
            "attention": lambda t: ((t @ pool.query / 2).softmax(0)[:, None] * t).sum(0)}  # fmt: skip
    close(pool(h, row, torch.tensor(LENGTHS)), torch.stack([ways[kind](t) for t in h.split(LENGTHS)]))


def test_a_bag_is_pytorchs_embedding_bag():
    encoder, x = make("bag"), batch()
    theirs = nn.EmbeddingBag.from_pretrained(encoder.embedding.weight.detach(), freeze=False)  # StaticEmbedding's
    starts = torch.tensor([0, *LENGTHS[:-1]]).cumsum(0)
    ours, other = encoder(x), theirs(x[x >= 0], starts)
    close(ours, other)
    close(gradients(encoder, ours)[0], gradients(theirs, other)[0])


@pytest.mark.parametrize(("name", "causal"), ALL)
def test_a_row_is_what_it_is_alone(name, causal):
    """Neither the other rows, their order, wider padding nor chunks matter, and forward pools tokens."""
    encoder, x = make(name, causal), batch()
    whole, alone = encoder(x), torch.cat([encoder(row[row >= 0][None]) for row in x])
    close(whole, alone)
    close(encoder.tokens(x), torch.cat([encoder.tokens(row[row >= 0][None]) for row in x]))
    close(torch.stack([t.mean(0) for t in encoder.tokens(x).split(LENGTHS)]), whole)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    close(encoder(x[order]), whole[order])
    close(encoder(batch(more=4)), whole)
    for a, b in zip(gradients(encoder, in_chunks(encoder, x, 4)), gradients(encoder, whole)):
        close(a, b)


@pytest.mark.parametrize(("name", "causal"), [row for row in ALL if row[0] != "bag"])
def test_only_causal_encoders_do_not_see_what_follows(name, causal):
    encoder, x = make(name, causal), batch((6, 6))
    other = x.clone()
    other[:, 4:] = (other[:, 4:] + 1) % V
    a, b = (encoder.tokens(t).view(2, 6, -1)[:, :4] for t in (x, other))
    assert torch.equal(a, b) if causal else (a - b).abs().amax(2).min() > 1e-6


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(0, 9))
def test_any_lengths(lengths, seed):
    encoder, x = make(), batch(tuple(lengths), seed)
    close(encoder(x), encoder.padded(x.clamp(min=0), x >= 0))
    packed = pack(x, 64, V)
    assert torch.equal(packed.as_they_came(packed.ids[:, None])[:, 0], x[x >= 0])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_berts_model_gives_the_same_tokens(causal, dtype, tol):
    transformers = pytest.importorskip("transformers")
    encoder, x = make(causal=causal).to(dtype), batch()
    theirs = transformers.BertModel(transformers.BertConfig(**bert_config(encoder))).to(dtype).eval()
    theirs.load_state_dict(to_bert_state_dict(encoder), strict=True)
    out = theirs(input_ids=x.clamp(min=0), attention_mask=(x >= 0).long()).last_hidden_state
    close(encoder.tokens(x), out[x >= 0], tol)


@pytest.mark.parametrize(("name", "causal"), ALL)
def test_trains_under_bfloat16_and_dropout_makes_views_differ(name, causal):
    encoder, x = make(name, causal, dropout=0.2).float().train(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        a, b = encoder(x), encoder(x)
    assert not torch.equal(a, b)
    (a.float() - b.float()).square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in encoder.parameters())
    close(encoder.eval()(x).double(), make(name, causal)(x), 1e-4)


def test_dropout_is_the_same_again_in_chunks():
    encoder, x = make(dropout=0.3).train(), batch()
    torch.manual_seed(5)
    z = in_chunks(encoder, x, 4)
    torch.manual_seed(5)
    whole = torch.cat([encoder(part) for part in x.split(4)])
    close(z, whole)
    for a, b in zip(gradients(encoder, z), gradients(encoder, whole)):
        close(a, b)


@pytest.mark.parametrize(("call", "said"), [
    (lambda: text_encoder("transformr", V), "did you mean 'transformer'"),
    (lambda: text_encoder("transformer", V, width=10, heads=4), "width 10"),
    (lambda: text_encoder("gru", V, pooling="men"), "did you mean 'mean'"),
    (lambda: text_encoder("bag", V, layers=2), "no layers"),
    (lambda: make(max_length=11)(batch()), "12 tokens"),
    (lambda: make()(torch.tensor([[3, 4], [-1, -1]])), "row 1"),
    (lambda: make()(torch.tensor([[V]])), "token 30"),
    (lambda: make()(torch.zeros(2, 3)), "whole numbers"),
])  # fmt: skip
def test_mistakes_are_one_line(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["BertConfig", "DistilBertConfig", "T5Config", "GPT2Config", "RobertaConfig"])
def test_transformers_models_row_by_row(kind, tmp_path):
    """In groups of lengths as without padding; fresh weights and saved ones; the last token of decoders."""
    transformers = pytest.importorskip("transformers")
    sizes = {"BertConfig": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                            "intermediate_size": 32},
             "DistilBertConfig": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
             "T5Config": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
             "GPT2Config": {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1,
                            "eos_token_id": 2}}  # fmt: skip
    sizes["RobertaConfig"] = sizes["BertConfig"] | {"max_position_embeddings": 66}
    config = getattr(transformers, kind)(vocab_size=V, **sizes[kind])
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    encoder, x = text_encoder(f"transformers:{tmp_path}", V).eval(), batch() % V
    x = torch.where(batch() >= 0, x.clamp(min=3), -1)  # ids of padding are special in some
    assert encoder.features == 16
    net = model.get_encoder() if kind == "T5Config" else model
    alone = [net(input_ids=row[row >= 0][None]).last_hidden_state[0] for row in x]
    close(encoder.tokens(x), torch.cat(alone), 1e-5)
    close(encoder(x), torch.stack([t[-1] if kind == "GPT2Config" else t.mean(0) for t in alone]), 1e-5)
    assert text_encoder(f"transformers:{tmp_path}@random", V)(x).shape == (len(x), 16)
    encoder.train()(x).square().sum().backward()
    lacking = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert not lacking


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_dropout_keeps_the_share_and_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(999, 1001, requires_grad=True)
    z = drop(x, p)
    assert abs((z == 0).double().mean() - p) < 0.002
    torch.testing.assert_close(z.max().item(), 1 / (1 - p), rtol=0.02, atol=0)
    z.sum().backward()
    assert torch.equal(x.grad, z.detach())
