"""The torch step modules against the `rwkv` package and the float64 reference, one token and many at a time."""

from __future__ import annotations

import itertools
import typing
from dataclasses import replace

import numpy as np
import pytest
import torch

from exporter.contract import Spelling
from exporter.models import parameters
from tests.models import SHAPES, VERSIONS, case
from tests.oracle import RUNS, Oracle, errors, package_trace, trace_of
from tests.parity.stepping import StepModule, rows
from validation.reference import Reference, state_specs

pytestmark = pytest.mark.slow

BOUND = 1e-5  # of a tensor's largest value; both sides compute in fp32
CHUNKS = [1, 2, 16, 5, 1, 7, 32]  # 64 tokens in calls of these lengths

CHOICES = {  # every field of Spelling that is a choice between words
    name: typing.get_args(hint)
    for name, hint in typing.get_type_hints(Spelling).items()
    if typing.get_origin(hint) is typing.Literal
}
SPELLINGS = [Spelling(**dict(zip(CHOICES, words, strict=True))) for words in itertools.product(*CHOICES.values())]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("version", RUNS)
def test_64_steps_agree_with_the_rwkv_package(version, shape):
    weights, tokens = case(version, shape)
    found = errors(StepModule(weights, version).trace(tokens), package_trace(version, shape))
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("version", VERSIONS)
def test_64_steps_agree_with_the_float64_reference(version, shape):
    weights, tokens = case(version, shape)
    found = errors(StepModule(weights, version).trace(tokens), trace_of(Reference(weights, version), tokens))
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("version", RUNS)
def test_calls_of_many_tokens_agree_with_the_rwkv_package_at_their_ends(version):
    weights, tokens = case(version)
    found = errors(
        StepModule(weights, version).trace(tokens, chunks=CHUNKS), rows(package_trace(version, "3x32"), CHUNKS)
    )
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_spelling_agrees_with_the_float64_reference(version):
    weights, tokens = case(version)
    chunks = [1, 1, 3, 1, 4]
    want = rows(trace_of(Reference(weights, version), tokens[:10]), chunks)
    assert len(SPELLINGS) > 1
    for spelling in SPELLINGS:
        found = errors(StepModule(weights, version, spelling=spelling).trace(tokens[:10], chunks=chunks), want)
        assert max(found.values()) < BOUND, (spelling, found)


@pytest.mark.parametrize("version", ["7", "7a"])
def test_an_l2_eps_that_survives_fp16_changes_nothing_in_fp32(version):
    weights, tokens = case(version)
    made = StepModule(weights, version, spelling=replace(Spelling(), l2_eps=1e-7))
    assert max(errors(made.trace(tokens), package_trace(version, "3x32")).values()) < BOUND


@pytest.mark.parametrize("version", ["7", "7a"])
@pytest.mark.parametrize("l2_eps", [1e-12, 1e-7])
def test_a_head_without_a_removal_key_removes_nothing(version, l2_eps):
    weights, tokens = case(version, steps=8)
    weights = weights | {"blocks.1.att.k_k": weights["blocks.1.att.k_k"].clone()}
    weights["blocks.1.att.k_k"][..., :32] = 0
    made = StepModule(weights, version, spelling=replace(Spelling(), l2_eps=l2_eps))
    found = errors(made.trace(tokens), Oracle(weights, version).trace(tokens))
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("version", ["4", "7"])
def test_embeddings_as_small_as_those_of_training_meet_the_norm_s_eps(version):
    weights, tokens = case(version, steps=8)
    weights = weights | {"emb.weight": weights["emb.weight"] * 1e-3}
    found = errors(StepModule(weights, version).trace(tokens), Oracle(weights, version).trace(tokens))
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("version", ["6", "7a"])
def test_a_table_read_some_rows_at_a_time_is_the_whole_one(version, monkeypatch):
    monkeypatch.setattr(parameters, "ROWS", 10)
    (weights, _), tokens = case(version), [9, 10, 100, 99]  # the last of a piece and the first of the next, of 101 rows
    found = errors(StepModule(weights, version).trace(tokens), Oracle(weights, version).trace(tokens))
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("version", VERSIONS)
def test_state_specs_are_the_reference_s_in_float32(version):
    weights, _ = case(version)
    made, sizes = StepModule(weights, version), SHAPES["3x32"]
    wanted = state_specs(version, sizes["layers"], sizes["width"], sizes["width"] // sizes["head_size"])
    assert made.spec.state == tuple(replace(spec, dtype="float32") for spec in wanted)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_call_leaves_its_arguments_alone_and_can_be_repeated(version):
    weights, tokens = case(version)
    made = StepModule(weights, version)
    with torch.inference_mode():
        _, *state = made.module(torch.tensor(tokens[:5]), *made.initial())
        before = [tensor.clone() for tensor in state]
        first = made.module(torch.tensor(tokens[5:9]), *state)
        second = made.module(torch.tensor(tokens[5:9]), *state)
    for tensor, copy in zip(state, before, strict=True):
        assert torch.equal(tensor, copy)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("version", VERSIONS)
def test_optional_tensors_agree_with_the_float64_reference(version):
    weights, tokens = case(version, steps=16)
    plain = trace_of(Reference(weights, version), tokens).logits
    weights = {name: tensor for name, tensor in weights.items() if ".ln0." not in name}
    weights["head.bias"] = torch.linspace(-1, 1, 101)
    weights |= {f"blocks.{i}.att.output.bias": torch.linspace(1, -1, 96) for i in range(3)}
    want = trace_of(Reference(weights, version), tokens)
    assert np.abs(want.logits - plain).max() > 0.1
    found = errors(StepModule(weights, version).trace(tokens), want)
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("version", ["7", "7a"])
def test_dummy_v0_v1_v2_of_layer_0_play_no_part(version):
    weights, tokens = case(version)
    dummies = {f"blocks.0.att.v{n}": weights[f"blocks.1.att.v{n}"] + 1 for n in range(3)}
    found = errors(StepModule(weights | dummies, version).trace(tokens), package_trace(version, "3x32"))
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != "4"])
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_ln_x_eps_is_the_one_asked_for(version, eps):
    weights, tokens = case(version, steps=16)
    want = trace_of(Reference(weights, version, ln_x_eps=eps), tokens)
    found = errors(StepModule(weights, version, ln_x_eps=eps).trace(tokens), want)
    assert max(found.values()) < BOUND, found
