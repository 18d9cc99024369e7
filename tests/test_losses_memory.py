import functools
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import assert_processes_equal_one, spawn, split

from nearfar.losses import info_nce, nt_xent
from nearfar.losses.memory import CrossBatchMemory


def batches(sizes: list[int], width: int = 3, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, width, generator=g), torch.randint(0, 9, (n,), generator=g)) for n in sizes]


def naive(size: int, given: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[list, list]:
    """A list that loses its first when it is too long."""
    rows, ids = [], []
    for z, groups in given:
        for row, i in zip(z.tolist(), groups.tolist()):
            rows.append(row)
            ids.append(i)
            if len(rows) > size:
                del rows[0], ids[0]
    return rows, ids


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 30), min_size=1, max_size=8))
def test_it_is_a_list_that_loses_its_first(size, sizes):
    """Batches that do not divide the size, are larger than it, or empty; nothing is cut where it wraps around."""
    memory, given = CrossBatchMemory(size, 3), batches(sizes)
    for k, (z, groups) in enumerate(given, 1):
        memory.push(z, groups)
        rows, ids = naive(size, given[:k])
        keys, key_groups = memory()
        assert keys.tolist() == rows
        assert key_groups.tolist() == ids
        assert len(memory) == len(ids) == int(memory.count)
        assert memory.full == (len(ids) == size)
        assert keys.shape == (len(ids), 3)
        assert not keys.requires_grad


def test_a_batch_goes_before_what_is_held_with_its_gradient():
    memory = CrossBatchMemory(4, 2)
    memory.push(torch.eye(2), torch.tensor([5, 6]))
    z = torch.randn(3, 2, requires_grad=True)
    keys, key_groups = memory(z, torch.tensor([1, 2, 3], dtype=torch.int32))
    assert key_groups.tolist() == [1, 2, 3, 5, 6]
    assert torch.equal(keys[:3], z)
    assert torch.equal(keys[3:], torch.eye(2))
    keys.sum().backward()
    assert torch.equal(z.grad, torch.ones(3, 2))
    assert len(memory) == 2  # looking is not pushing


def test_loss_on_it_is_the_naive_one_and_pushing_before_backward_is_harmless():
    g = torch.Generator().manual_seed(1)
    memory = CrossBatchMemory(5, 4)
    for z, groups in batches([4, 4], 4):
        memory.push(z, groups)
    held, ids = memory.rows.clone(), memory.groups.clone()
    z, keys = (torch.randn(3, 4, generator=g, requires_grad=True) for _ in range(2))
    groups = torch.tensor([20, 21, 22])
    loss = info_nce(z, groups, *memory(keys, groups), temperature=0.3)
    memory.push(keys, groups)
    memory.push(keys, groups)
    loss.backward()
    a, b = z.detach().double().requires_grad_(), keys.detach().double().requires_grad_()
    unit = torch.nn.functional.normalize
    values = []
    for i in range(3):
        logits = [unit(a[i], dim=0) @ unit(k, dim=0) / 0.3 for k in [*b, *held.double()]]
        values.append(torch.stack(logits).logsumexp(0) - logits[i])
    assert not set(ids.tolist()) & {20, 21, 22}
    want = sum(values) / 3
    want.backward()
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(z.grad.double(), a.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(keys.grad.double(), b.grad, rtol=1e-4, atol=1e-6)


def test_before_the_first_push_a_loss_is_nought():
    memory = CrossBatchMemory(8, 3)
    keys, key_groups = memory()
    assert keys.shape == (0, 3)
    assert key_groups.shape == (0,)
    assert bool(memory)  # `memory or other` keeps it
    assert not memory.full
    z = torch.randn(4, 3, requires_grad=True)
    loss = info_nce(z, torch.arange(4), keys, key_groups)
    loss.backward()
    assert loss.item() == 0
    assert float(z.grad.abs().max()) == 0


def train(model, memory, optimiser, steps: range) -> None:
    for i in steps:
        g = torch.Generator().manual_seed(i)
        x, y = torch.randn(6, 4, generator=g), torch.randint(0, 3, (6,), generator=g)
        z = model(x)
        loss = nt_xent(z, y) + info_nce(z, y, *memory(), temperature=0.2)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        memory.push(z, y)


def fresh():
    torch.manual_seed(0)
    model, memory = torch.nn.Linear(4, 3), CrossBatchMemory(16, 3)
    return model, memory, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resumed_equals_uninterrupted_to_the_bit(stop):
    whole, first, second = fresh(), fresh(), fresh()
    train(*whole, range(10))
    train(*first, range(stop))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    for part, state in zip(second, torch.load(file, weights_only=True)):
        part.load_state_dict(state)
    assert len(second[1]) == min(16, 6 * stop)
    train(*second, range(stop, 10))
    for part, other in zip(whole[:2], second[:2]):
        assert part.state_dict().keys() == other.state_dict().keys()
        for a, b in zip(part.state_dict().values(), other.state_dict().values()):
            assert torch.equal(a, b)
    assert set(whole[1].state_dict()) == {"rows", "groups", "pointer", "count"}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_cast_to_another_type_keeps_what_is_held(kind):
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(3, 3), "memory": CrossBatchMemory(4, 3)})
    memory = model["memory"]
    memory.push(*batches([6])[0])
    memory.groups[0] = 2**40 + 1
    before = [t.clone() for t in memory()]
    model.to(kind)
    assert model["encoder"].weight.dtype == kind
    assert [b.dtype for b in memory.buffers()] == [torch.float32, torch.int64, torch.int64, torch.int64]
    assert all(torch.equal(a, b) for a, b in zip(before, memory()))
    z = model["encoder"](torch.randn(2, 3).to(kind))
    memory.push(z, torch.tensor([1, 2]))
    assert torch.equal(memory()[0][-2:], z.detach().float())
    keys, _ = memory(z, torch.tensor([1, 2]))
    assert keys.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    assert memory.to("meta").rows.device.type == "meta"


def test_narrow_autocast_embeddings():
    memory = CrossBatchMemory(8, 3)
    net = torch.nn.Linear(5, 3)
    x, groups = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16):
        z = net(x)
        assert z.dtype == torch.bfloat16
        memory.push(z, groups)
        loss = info_nce(z, groups, *memory(z, groups), temperature=0.01)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(memory()[0], z.detach().float())
    assert net.weight.grad.isfinite().all()


@pytest.mark.parametrize(("z", "groups", "said"), [
    (torch.zeros(2, 4), torch.arange(2), r"z is \(2, 4\) and the memory holds rows of 3"),
    (torch.zeros(2, 3), torch.arange(3), "2 rows and groups is"),
    (torch.zeros(2, 3), torch.zeros(2), "whole numbers"),
    (torch.full((2, 3), float("nan")), torch.arange(2), "NaN or infinite"),
    (torch.zeros(3), torch.arange(3), r"z must be \(N, d\)"),
    (torch.zeros(2, 3, dtype=torch.int64), torch.arange(2), "z must be a tensor of floats"),
    ([[1.0, 2.0, 3.0]], torch.arange(1), "z must be a tensor of floats, got list"),
    (torch.zeros(2, 3, device="meta"), torch.arange(2), "z is on meta and the memory on cpu"),
])  # fmt: skip
def test_bad_input_is_named_and_changes_nothing(z, groups, said):
    memory = CrossBatchMemory(4, 3)
    memory.push(*batches([3])[0])
    before = {k: v.clone() for k, v in memory.state_dict().items()}
    for call in (memory.push, memory):
        with pytest.raises(ValueError, match=said) as error:
            call(z, groups)
        assert "\n" not in str(error.value)
    assert all(torch.equal(v, memory.state_dict()[k]) for k, v in before.items())


def test_bad_construction_is_named():
    for args, said in (((0, 3), "size must be"), ((4, 0), "width must be"), ((4, 2.5), "got 2.5"), ((True, 3), "size")):
        with pytest.raises(ValueError, match=said):
            CrossBatchMemory(*args)
    with pytest.raises(ValueError, match="z and groups go together"):
        CrossBatchMemory(4, 3)(torch.zeros(2, 3))


def test_the_neighbours_bank_is_cut_where_it_wraps_and_lost_on_resume():
    """What lightly's memory bank does, and ours does not."""
    lightly = pytest.importorskip("lightly.models.modules.memory_bank")
    bank = lightly.MemoryBankModule(size=(5, 2), feature_dim_first=False)
    ours = CrossBatchMemory(5, 2)
    for i in range(2):
        z = torch.full((3, 2), float(i + 1))
        bank(z, update=True)
        ours.push(z, torch.full((3,), i))
    assert int((bank.bank == 2).all(1).sum()) == 2  # of three rows pushed
    assert int((ours.rows == 2).all(1).sum()) == 3
    assert not bank.state_dict()
    assert ours.state_dict()["count"] == 5


def loss_with_memory(held, sizes, current, z, groups, keys_of, w):
    """MoCo's loss after some pushes: the pushed rows are cut over the processes as the batch is."""
    memory = CrossBatchMemory(*sizes)
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    rank = torch.distributed.get_rank() if world > 1 else 0
    for x, ids in held:
        mine = split(len(x), world)[rank]
        memory.push(x[mine], ids[mine])
    keys = keys_of.to(w.dtype) @ w
    return info_nce(z, groups, *(memory(keys, groups) if current else memory()), temperature=0.5)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_equal_one(world):
    g = torch.Generator().manual_seed(5)
    x, other = (torch.randn(11, 4, dtype=torch.float64, generator=g) for _ in range(2))
    w, v = (torch.randn(4, 3, dtype=torch.float64, generator=g) for _ in range(2))
    groups = torch.randint(0, 9, (11,), generator=g)
    cases = {}
    for name, size, sizes in (("few", 20, [3]), ("wrapped", 7, [5, 1, 4]), ("over", 6, [20, 3]), ("empty", 4, [])):
        held = batches(sizes)
        for current in (True, False) if held else (True,):
            label = f"{'' if current else 'flat '}{name}"  # without the batch no gradient reaches the second weight
            loss = functools.partial(loss_with_memory, held, (size, 3), current)
            cases[label] = (loss, x, [groups, other], [w, v])
    assert_processes_equal_one(cases, world)


def pushed(size: int, given: list) -> tuple[dict, bool]:
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    memory = CrossBatchMemory(size, 3)
    for z, groups in given:
        mine = split(len(z), world)[rank]  # fewer rows than processes leave the last without any
        memory.push(z[mine], groups[mine])
    error = None
    try:
        memory.push(torch.full((1, 3), float("nan" if rank == 0 else 1)), torch.arange(1))
    except ValueError as e:
        error = str(e)
    empty = CrossBatchMemory(size, 3)
    z = torch.randn(2, 3, requires_grad=True)
    return {k: v.tolist() for k, v in memory.state_dict().items()}, error, info_nce(z, torch.arange(2), *empty()).item()


def test_the_queue_is_the_same_on_every_process_and_as_on_one():
    given = batches([7, 1, 2, 12, 5])
    one = CrossBatchMemory(8, 3)
    for z, groups in given:
        one.push(z, groups)
    want = {k: v.tolist() for k, v in one.state_dict().items()}
    for rank, (state, error, nought) in enumerate(spawn(3, pushed, 8, given)):
        assert state == want  # also after a push that was refused
        assert ("NaN" in error) == (rank == 0)
        assert "process 0" in error or rank == 0
        assert nought == 0
