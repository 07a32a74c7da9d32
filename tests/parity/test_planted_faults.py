"""Faults planted in the step modules, each of which the comparison with the `rwkv` package must see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exporter.contract import Spelling
from exporter.models import blocks, layers, v4, v5, v6, v7, v7a
from tests.models import DEEP, case
from tests.oracle import RUNS, errors, package_trace
from tests.parity.stepping import StepModule, rows

pytestmark = pytest.mark.slow

BOUND = 1e-5  # what the modules keep without a fault, see test_step_modules.py
FAR = 1e-3  # what every fault must exceed
FILES = (blocks, layers, v4, v5, v6, v7, v7a)
STEPS = [1] * 16
CHUNKS = [1, 3, 4, 8]

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch, str], StepModule]


def built(version: str) -> StepModule:
    return StepModule(case(version)[0], version, spelling=Spelling(block=4))


def found(made: StepModule, version: str, chunks: list[int]) -> dict[str, float]:
    """Errors over the first 16 tokens."""
    return errors(made.trace(case(version)[1][:16], chunks=chunks), rows(package_trace(version, "3x32"), chunks))


def wrap(module: nn.Module, forward: Callable[..., object]) -> None:
    """Replace a module's forward by `forward(plain, *arguments)`."""
    plain = module.forward
    module.forward = lambda *arguments: forward(plain, *arguments)


def everywhere(patch: Patch, name: str, value: object) -> None:
    """Replace a function in every model file that has it."""
    for file in FILES:
        if hasattr(file, name):
            patch.setattr(file, name, value)


def eps_of_1e_5(_: Patch, version: str) -> StepModule:
    return StepModule(case(version)[0], version, ln_x_eps=1e-5)


def state_transposed_after_each_step(_: Patch, version: str) -> StepModule:
    made = built(version)

    def forward(plain, *arguments):
        *rest, wkv = plain(*arguments)
        return *rest, wkv.mT

    for block in made.module.blocks:
        wrap(block.att, forward)
    return made


def state_kept_transposed(_: Patch, version: str) -> StepModule:
    """Swapped back before use: no logit is wrong, only what the state's axes are said to be."""
    made = built(version)

    def forward(plain, *arguments):
        *before, old = arguments
        *rest, wkv = plain(*before, old.mT)
        return *rest, wkv.mT

    for block in made.module.blocks:
        wrap(block.att, forward)
    return made


def record(module: nn.Module, seen: dict[str, object], *, output: bool) -> None:
    """Keep the module's last output, or its last input, in seen["it"]."""

    def forward(plain, x):
        y = plain(x)
        seen["it"] = y if output else x
        return y

    wrap(module, forward)


def keep_residual(norm: nn.Module, mix: nn.Module, place: int) -> None:
    """Make the shift that `mix` returns at `place` the input of the norm before it."""
    seen = {}

    def forward(plain, *arguments):
        out = list(plain(*arguments))
        out[place] = seen["it"][-1:]
        return tuple(out)

    record(norm, seen, output=False)
    wrap(mix, forward)


def time_mix_shift_is_x_before_the_norm(_: Patch, version: str) -> StepModule:
    made = built(version)
    for block in made.module.blocks:
        keep_residual(block.ln1, block.att, 2)
    return made


def channel_mix_shift_is_x_before_the_norm(_: Patch, version: str) -> StepModule:
    made = built(version)
    for block in made.module.blocks:
        keep_residual(block.ln2, block.ffn, 1)
    return made


def v4_maximum_starts_at_zero(_: Patch, version: str) -> StepModule:
    made = built(version)
    made.spec = replace(made.spec, state=tuple(replace(spec, fill=0.0) for spec in made.spec.state))
    return made


def v4_maximum_does_not_decay(_: Patch, version: str) -> StepModule:
    made = built(version)
    for block in made.module.blocks:
        block.att.recurrence.decay.zero_()
    return made


def v4_read_after_the_update(patch: Patch, version: str) -> StepModule:
    plain = v4.Recurrence.step

    def step(self, *arguments):
        _, aa, bb, pp = plain(self, *arguments)
        return aa / bb, aa, bb, pp

    patch.setattr(v4.Recurrence, "step", step)
    return built(version)


def v5_read_after_the_update(patch: Patch, version: str) -> StepModule:
    plain = v5.recur

    def recur(wkv, r, k, v, w, u, dot, read):
        _, wkv = plain(wkv, r, k, v, w, u, dot, read)
        return read(r, wkv), wkv

    everywhere(patch, "recur", recur)
    return built(version)


def v7_read_before_the_update(patch: Patch, version: str) -> StepModule:
    plain = v7.Recurrence.step

    def step(self, r, *rest):
        y, new = plain(self, r, *rest)
        return self.times(rest[-1], r).reshape(y.shape), new

    patch.setattr(v7.Recurrence, "step", step)
    return built(version)


def decay_along_the_value_axis(patch: Patch, version: str) -> StepModule:
    plain = v5.recur
    everywhere(patch, "recur", lambda wkv, r, k, v, w, *rest: plain(wkv, r, k, v, w.mT, *rest))
    return built(version)


def bonus_without_its_exponential(patch: Patch, version: str) -> StepModule:
    patch.setattr(v5, "bonus_5_0", lambda time_first: time_first.reshape(1, -1, 1))
    return built(version)


def v_first_dropped(_: Patch, version: str) -> StepModule:
    made = built(version)
    for block in made.module.blocks:
        block.att.v = None
    return made


def v_first_of_the_layer_before(_: Patch, version: str) -> StepModule:
    made = built(version)

    def hand_on(att: nn.Module) -> None:
        seen = {}

        def forward(plain, *arguments):
            added, _, *state = plain(*arguments)
            return added, seen["it"], *state

        record(att.value, seen, output=True)
        wrap(att, forward)

    for block in made.module.blocks:
        hand_on(block.att)
    return made


def mix_of_the_token_before(patch: Patch, version: str) -> StepModule:
    everywhere(patch, "complement", layers.flat)
    return built(version)


def v6_low_rank_rows_in_another_order(patch: Patch, version: str) -> StepModule:
    made = built(version)
    for block in made.module.blocks:
        up = block.att.shift.up
        up[0], up[1] = up[1], up[0]
    return made


def v7a_matrix_transposed(_: Patch, version: str) -> StepModule:
    made = built(version)
    for block in made.module.blocks:
        wrap(block.ffn.turn, lambda plain, vector, matrix: plain(vector, matrix.mT))
    return made


def v7a_table_without_the_embedding(patch: Patch, version: str) -> StepModule:
    patch.setattr(v7a, "folded", lambda s_emb, *_: s_emb.clone())
    return built(version)


FAULTS: dict[Fault, tuple[str, ...]] = {
    eps_of_1e_5: ("5.0", "5.1", "5.2", "6", "7", "7a"),
    state_transposed_after_each_step: ("5.0", "5.1", "5.2", "6", "7", "7a"),
    state_kept_transposed: ("5.0", "5.1", "5.2", "6", "7", "7a"),
    time_mix_shift_is_x_before_the_norm: RUNS,
    channel_mix_shift_is_x_before_the_norm: RUNS,
    v4_maximum_starts_at_zero: ("4",),
    v4_maximum_does_not_decay: ("4",),
    v4_read_after_the_update: ("4",),
    v5_read_after_the_update: ("5.0", "5.1", "5.2", "6"),
    v7_read_before_the_update: ("7", "7a"),
    decay_along_the_value_axis: ("5.2", "6"),
    bonus_without_its_exponential: ("5.0", "5.1"),
    v_first_dropped: ("7", "7a"),
    v_first_of_the_layer_before: ("7", "7a"),
    mix_of_the_token_before: ("4", "5.0", "5.1", "5.2"),
    v6_low_rank_rows_in_another_order: ("6",),
    v7a_matrix_transposed: ("7a",),
    v7a_table_without_the_embedding: ("7a",),
}
CASES = [
    pytest.param(fault, version, id=f"{fault.__name__}-{version}") for fault in FAULTS for version in FAULTS[fault]
]


@pytest.mark.parametrize(("fault", "version"), CASES)
def test_a_planted_fault_is_far_outside_the_bound(monkeypatch, fault, version):
    assert max(found(built(version), version, STEPS).values()) < BOUND
    seen = found(fault(monkeypatch, version), version, STEPS)
    assert max(seen.values()) > FAR, seen


@pytest.mark.parametrize("version", FAULTS[state_kept_transposed])
def test_a_state_kept_transposed_shows_in_the_state_alone(monkeypatch, version):
    seen = found(state_kept_transposed(monkeypatch, version), version, STEPS)
    assert seen["logits"] < BOUND
    assert seen["blocks.1.att.wkv"] > FAR


def tokens_all_follow_the_call_s_predecessor(patch: Patch) -> None:
    everywhere(patch, "previous", lambda x, shift: shift.expand_as(x))


def first_row_for_the_last(patch: Patch) -> None:
    everywhere(patch, "last", lambda x: x[:1])


def every_block_starts_from_the_call_s_state(patch: Patch) -> None:
    def chain(state, advance, blocks):
        *_, last = (advance(state, block) for block in range(blocks))
        return state.expand(blocks, -1, -1, -1), last

    everywhere(patch, "chain", chain)


def tokens_of_a_block_do_not_see_each_other(patch: Patch) -> None:
    plain = blocks.joined
    everywhere(patch, "joined", lambda size, like: 0 * plain(size, like))


def decay_counts_the_token_that_reads(patch: Patch) -> None:
    plain = blocks.between
    everywhere(patch, "between", lambda size, like: (plain(size, like) + torch.eye(size)).clamp(max=1))


def decay_counted_to_the_boundary_before(patch: Patch) -> None:
    plain = v7.from_the_middle
    everywhere(patch, "from_the_middle", lambda size, like: plain(size, like).roll(1, 0))


def removal_sees_what_its_own_token_writes(patch: Patch) -> None:
    everywhere(patch, "before", lambda size, like: torch.ones(size, size).tril())


def v4_call_does_not_see_the_state(patch: Patch) -> None:
    plain = v4.Recurrence.solve
    patch.setattr(v4.Recurrence, "solve", lambda self, k, v, aa, bb, pp: plain(self, k, v, 0 * aa, 0 * bb, pp))


def v7a_tokens_turned_by_the_first_matrix(patch: Patch) -> None:
    plain = F.embedding

    def embedding(tokens, table):
        deep = table.shape[1] == DEEP * DEEP
        return plain(tokens[:1] if deep else tokens, table).expand(len(tokens), -1)

    patch.setattr(F, "embedding", embedding)


MANY: dict[Callable[[Patch], None], tuple[str, ...]] = {
    tokens_all_follow_the_call_s_predecessor: RUNS,
    first_row_for_the_last: RUNS,
    every_block_starts_from_the_call_s_state: ("5.0", "5.1", "5.2", "6", "7", "7a"),
    tokens_of_a_block_do_not_see_each_other: ("5.0", "5.1", "5.2", "6", "7", "7a"),
    decay_counts_the_token_that_reads: ("5.0", "5.1", "5.2", "6"),
    decay_counted_to_the_boundary_before: ("7", "7a"),
    removal_sees_what_its_own_token_writes: ("7", "7a"),
    v4_call_does_not_see_the_state: ("4",),
    v7a_tokens_turned_by_the_first_matrix: ("7a",),
}


@pytest.mark.parametrize(
    ("fault", "version"),
    [pytest.param(fault, version, id=f"{fault.__name__}-{version}") for fault in MANY for version in MANY[fault]],
)
def test_a_fault_in_calls_of_many_tokens_shows_only_there(monkeypatch, fault, version):
    fault(monkeypatch)
    made = built(version)
    assert max(found(made, version, STEPS).values()) < BOUND
    seen = found(made, version, CHUNKS)
    assert max(seen.values()) > FAR, seen
