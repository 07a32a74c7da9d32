"""Calls of many tokens, which solve whole blocks at once, against single steps and the float64 reference."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter import graph
from exporter.contract import Spelling
from exporter.models import blocks, v7
from exporter.models.primitives import masking
from tests.models import VERSIONS, case
from tests.oracle import Trace, errors, trace_of
from tests.parity.stepping import StepModule, rows
from validation.reference import Reference

pytestmark = pytest.mark.slow

LENGTHS = (2, 3, 7, 16, 31, 32, 33, 64, 65, 100)
FEW = 3  # times the error that float32 steps have themselves
EPS = float(torch.finfo(torch.float32).eps)
DECAYS = {
    "w0": (9.0, -12.0),
    "time_decay": (5.0, -12.0),
}  # what decays come from: all forgotten at once, nearly nothing

Weights = Mapping[str, torch.Tensor]


def cut(trace: Trace, length: int) -> Trace:
    """The trace's row after `length` tokens."""
    return rows(trace, [length])


@functools.cache
def tiny(version: str, block: int = 32) -> StepModule:
    return StepModule(case(version, "2x13")[0], version, spelling=Spelling(block=block))


@functools.cache
def stepped(version: str) -> tuple[list[int], Trace, float]:
    """100 tokens, what the tiny model makes of them in float64, and the worst error of float32 steps."""
    weights, tokens = case(version, "2x13", steps=100)
    want = trace_of(Reference(weights, version), tokens)
    return tokens, want, max(errors(tiny(version).trace(tokens), want).values())


def check(version: str, weights: Weights, tokens: Sequence[int], lengths: Sequence[int]) -> None:
    """Single calls of `lengths` tokens are as near to float64 as as many steps are, or nearer."""
    made = StepModule(weights, version)
    want = trace_of(Reference(weights, version), tokens)
    steps = max(errors(made.trace(tokens), want).values())
    for length in lengths:
        found = errors(made.trace(tokens[:length], chunks=[length]), cut(want, length))
        assert max(found.values()) <= FEW * max(steps, 4 * EPS), (length, steps, found)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_call_of_any_length_is_as_exact_as_its_steps(version):
    weights, tokens = case(version, steps=100)
    check(version, weights, tokens, LENGTHS)


@pytest.mark.parametrize("version", VERSIONS)
def test_sums_over_tokens_as_linears_are_as_exact_as_steps(version):
    tokens, want, steps = stepped(version)
    made = StepModule(case(version, "2x13")[0], version, spelling=Spelling(reduce="linear", block=16))
    for length in (15, 33, 100):
        found = errors(made.trace(tokens[:length], chunks=[length]), cut(want, length))
        assert max(found.values()) <= FEW * max(steps, 4 * EPS), (length, steps, found)


def extreme(version: str, how: str) -> tuple[Weights, list[int]]:
    """A random model whose channels forget all at once ("strong"), nearly never, or are of both sorts; and tokens."""
    weights, tokens = case(version, "8x8", steps=100)
    (name,) = (name for name in DECAYS if f"blocks.0.att.{name}" in weights)
    strong, weak = DECAYS[name]
    made = dict(weights)
    for key in (key for key in weights if key.endswith(f"att.{name}")):
        made[key] = torch.full_like(weights[key], strong if how == "strong" else weak)
        if how == "mixed":
            made[key][..., ::2] = strong
    return made, tokens


@pytest.mark.parametrize("how", ["strong", "weak", "mixed"])
@pytest.mark.parametrize("version", VERSIONS)
def test_extreme_decays_are_as_exact_as_steps(version, how):
    check(version, *extreme(version, how), [33, 64, 100])


@pytest.mark.parametrize("version", VERSIONS)
def test_one_token_repeated_is_as_exact_as_steps(version):
    weights, tokens = extreme(version, "weak")
    removing = {key: torch.full_like(tensor, 9.0) for key, tensor in weights.items() if key.endswith("att.a0")}
    check(version, {**weights, **removing}, tokens[:1] * 100, [33, 64, 100])


def test_a_decay_that_comes_and_goes_is_as_exact_as_steps():
    weights, tokens = case("6", "8x8", steps=100)
    louder = {key: 8 * tensor for key, tensor in weights.items() if key.endswith("time_decay_w2")}
    check("6", {**weights, **louder}, tokens, [33, 64, 100])


@pytest.mark.parametrize("exponent", [3.0, 88.0, 200.0])  # of exponentials that are small, the largest, infinite
def test_v6_forgets_all_whatever_the_exponent(exponent):
    recurrence = tiny("6").module.blocks[0].att.recurrence
    generator = torch.Generator().manual_seed(0)
    r, x, k, v = (torch.randn(40, 2, 13, generator=generator) for _ in range(4))
    x[::3] += exponent
    given = (r, -torch.exp(x), k, v, torch.randn(1, 2, 13, 13, generator=generator))
    with torch.inference_mode():
        y, wkv = recurrence(*given)
        rest, ys = given[-1], []
        for t in range(40):
            one, rest = recurrence(*(tensor[t : t + 1] for tensor in given[:-1]), rest)
            ys.append(one)
    torch.testing.assert_close(y, torch.cat(ys), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wkv, rest, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=12, deadline=None)
@given(chunks=st.lists(st.integers(1, 50), min_size=2, max_size=8), block=st.sampled_from([2, 5, 16, 32]))
def test_any_split_of_a_prompt_and_any_block_give_the_same(version, chunks, block):
    ends = np.minimum(np.cumsum(chunks), 100)
    chunks = [int(n) for n in np.diff([0, *ends]) if n]
    tokens, want, steps = stepped(version)
    found = errors(tiny(version, block).trace(tokens[: sum(chunks)], chunks=chunks), rows(want, chunks))
    assert max(found.values()) <= FEW * max(steps, 4 * EPS), (steps, found)


def operands(version: str, tokens: int) -> list[torch.Tensor]:
    """Random operands of the tiny model's recurrences."""
    made, shapes, generator = tiny(version), [], torch.Generator().manual_seed(0)
    recurrence = made.module.blocks[0].att.recurrence
    hook = recurrence.register_forward_pre_hook(lambda _, given: shapes.extend(tensor.shape for tensor in given))
    with torch.inference_mode():
        made.module(torch.zeros(tokens, dtype=torch.int64), *made.initial())
    hook.remove()
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("version", VERSIONS)
def test_tokens_of_zeros_leave_the_state_where_they_are_said_to(version):
    recurrence = tiny(version).module.blocks[0].att.recurrence
    tensors = operands(version, 5)
    state = tensors[recurrence.given :]
    with torch.inference_mode():
        _, *new = recurrence(*(torch.zeros_like(x) for x in tensors[: recurrence.given]), *state)
    kept = all(torch.allclose(one, other) for one, other in zip(new, state, strict=True))
    assert kept == recurrence.idle_zeros


@pytest.mark.parametrize(("block", "size"), [(5, 11), (4, 9), (16, 7)])  # whole blocks, one token over, none
@pytest.mark.parametrize("version", VERSIONS)
def test_tokens_that_a_mask_leaves_out_leave_no_trace(version, block, size):
    made = tiny(version, block)
    tokens, want, steps = stepped(version)
    ids, state = torch.tensor(tokens[:3]), made.initial()
    with torch.inference_mode():
        _, *state = made.module(ids, *state)
        for count in range(1, size + 1):
            some = torch.tensor([*tokens[3 : 3 + count], *[7] * (size - count)])
            with masking((torch.arange(size) < count).float()):
                logits, *new = made.module(some, *state)
            names = [spec.name for spec in made.spec.state]
            found = Trace(logits.numpy(), {n: t.numpy()[None] for n, t in zip(names, new, strict=True)})
            wrong = errors(found, Trace(want.logits[[2 + count]], {n: want.states[n][[2 + count]] for n in names}))
            assert max(wrong.values()) <= FEW * max(steps, 4 * EPS), (count, steps, wrong)


def traced(version: str, tokens: int) -> int:
    """Nodes of the graph of one recurrence."""
    recurrence = tiny(version).module.blocks[0].att.recurrence
    return len(graph.trace(recurrence, tuple(operands(version, tokens))).graph.nodes)


@pytest.mark.parametrize("version", VERSIONS)
def test_graphs_grow_by_the_chain_of_blocks_alone(version):
    one, some, many = (traced(version, tokens) for tokens in (1, 64, 256))
    assert many < 1.5 * some
    assert many < 256 * one / 10


@pytest.mark.parametrize("version", VERSIONS)
def test_all_but_the_recurrence_is_traced_once_for_any_length(monkeypatch, version):
    made = StepModule(case(version, "2x13")[0], version)
    given = made.module.blocks[0].att.recurrence.given

    def stub(*tensors):
        return sum(tensors[1:given], tensors[0]), *(2 * tensor for tensor in tensors[given:])

    for block in made.module.blocks:
        monkeypatch.setattr(block.att.recurrence, "forward", stub)
    inputs = graph.arguments(made.spec, 5)
    shapes = {"tokens": {0: torch.export.Dim("T", min=3)}, "state": (None,) * (len(inputs) - 1)}
    program = torch.export.export(made.module, inputs, dynamic_shapes=shapes, strict=False)
    for length in (3, 8, 100):
        tokens = torch.arange(length) % 33
        for got, want in zip(program.module()(tokens, *inputs[1:]), made.module(tokens, *inputs[1:]), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 13, 32])
def test_every_pair_of_tokens_is_joined_once_with_all_that_lies_between_in_its_two_rows(size):
    like = torch.zeros(1)
    joined, between = blocks.joined(size, like), blocks.between(size, like)
    assert torch.equal(joined.sum(0), torch.ones(size, size).tril(-1))
    for level, t, s in joined.nonzero().tolist():
        assert (between[1 + level, t] + between[1 + level, s]).nonzero().flatten().tolist() == list(range(s + 1, t))
    for t in range(size):
        assert between[0, t].nonzero().flatten().tolist() == list(range(t))
        assert between[-1, t].nonzero().flatten().tolist() == list(range(t + 1, size))
    assert between.max() <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 32])
def test_the_inverse_is_numpy_s(size):
    generator = torch.Generator().manual_seed(size)
    for matrix in (torch.rand(3, size, size, generator=generator), -torch.ones(1, size, size)):
        lower = matrix.tril(-1).double().numpy()
        want = np.linalg.inv(np.eye(size) - lower)
        np.testing.assert_allclose(blocks.inverse(matrix).numpy(), want, rtol=0, atol=8 * EPS * np.abs(want).max())


@pytest.mark.parametrize("size", [2, 5, 32])
def test_v7_counts_decay_from_the_middle_of_a_block(size):
    signs = v7.from_the_middle(size, torch.zeros(1)).numpy()
    total = np.vstack([np.zeros(size), np.tril(np.ones((size, size)))])  # of the decay from the start to each boundary
    np.testing.assert_array_equal(signs, total - total[size // 2])
