"""The float64 reference against the `rwkv` package, and against identities that hold for the maths alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from runtimes.contract import Session
from runtimes.errors import BadCheckpoint, WrongCall
from tests.models import SHAPES, VERSIONS, Dice, case
from tests.oracle import RUNS, Oracle, errors, package_trace, trace_of
from validation.reference import Reference

BOUND = 1e-5  # of a tensor's largest value, for the package's own fp32 rounding; measured: at most 4e-6
FAR = 1e-2  # an effect that cannot be taken for rounding
EPS_MATTERS = [version for version in RUNS if version != "4"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("version", RUNS)
def test_logits_and_every_state_agree_with_the_rwkv_package_over_64_tokens(version, shape):
    weights, tokens = case(version, shape)
    found = errors(trace_of(Reference(weights, version), tokens), package_trace(version, shape))
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_tensor_of_a_random_checkpoint_moves_the_logits(version):
    weights, tokens = case(version, steps=4)
    plain = trace_of(Reference(weights, version), tokens).logits
    for name in weights:
        if not name.startswith(("blocks.0.att", "blocks.0.ffn", "blocks.2.")):
            changed = weights | {name: weights[name].roll(1, -1)}
            moved = np.abs(trace_of(Reference(changed, version), tokens).logits - plain).max()
            assert moved > 1e-3, f"{name} moves the logits by {moved}"


@pytest.mark.parametrize("version", EPS_MATTERS)
def test_a_wrong_ln_x_eps_is_far_from_the_rwkv_package(version):
    weights, tokens = case(version, steps=8)
    found = errors(trace_of(Reference(weights, version, ln_x_eps=1e-5), tokens), Oracle(weights, version).trace(tokens))
    assert found["logits"] > FAR


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2", "6"])
def test_dividing_v_by_eight_at_eps_1e_5_equals_eps_64e_5(version):
    weights, tokens = case(version, steps=16)
    divided = weights | {name: weights[name] / 8 for name in weights if name.endswith("att.value.weight")}
    plain = trace_of(Reference(weights, version), tokens).logits
    np.testing.assert_allclose(trace_of(Reference(divided, version, ln_x_eps=1e-5), tokens).logits, plain, atol=1e-6)


def test_v4_starts_from_a_maximum_below_any_key():
    session = Reference(case("4")[0], "4")
    start = session.read_state(session.initial_state())
    after = session.read_state(session.step(3, session.write_state(start)).state)
    for layer in range(3):
        assert (start[f"blocks.{layer}.att.pp"] == -1e30).all()
        assert (after[f"blocks.{layer}.att.bb"] == 1.0).all()  # the first token is the whole average
    at_zero = {name: np.zeros_like(array) for name, array in start.items()}
    wrong = session.read_state(session.step(3, session.write_state(at_zero)).state)
    assert np.abs(wrong["blocks.0.att.bb"] - 1.0).max() > FAR


def test_7a_deep_embedding_folds_into_one_table_a_layer():
    weights, tokens = case("7a", steps=16)
    ln0 = weights["blocks.0.ln0.weight"], weights["blocks.0.ln0.bias"]
    e = F.layer_norm(weights["emb.weight"].double(), (96,), ln0[0].double(), ln0[1].double())
    folded = dict(weights)
    for layer in range(3):
        ffn = f"blocks.{layer}.ffn."
        folded[f"{ffn}s_emb.weight"] = weights[f"{ffn}s_emb.weight"] + e @ weights[f"{ffn}s_emb_x.weight"].double().T
        folded[f"{ffn}s_emb_x.weight"] = torch.zeros_like(weights[f"{ffn}s_emb_x.weight"])
    plain = trace_of(Reference(weights, "7a"), tokens).logits
    np.testing.assert_allclose(trace_of(Reference(folded, "7a"), tokens).logits, plain, atol=1e-6)
    assert np.abs(trace_of(Reference(weights, "7"), tokens).logits - plain).max() > FAR


@pytest.mark.parametrize("version", VERSIONS)
def test_missing_ln0_means_an_embedding_normed_already(version):
    weights, tokens = case(version, steps=8)
    ln0 = [weights[f"blocks.0.ln0.{part}"].double() for part in ("weight", "bias")]
    normed = {name: tensor for name, tensor in weights.items() if ".ln0." not in name}
    normed["emb.weight"] = F.layer_norm(weights["emb.weight"].double(), (96,), *ln0)
    plain = trace_of(Reference(weights, version), tokens).logits
    np.testing.assert_allclose(trace_of(Reference(normed, version), tokens).logits, plain, atol=1e-6)


def test_head_bias_is_added_to_the_logits():
    weights, tokens = case("6", steps=8)
    bias = torch.linspace(-2, 2, 101)
    want = Oracle(weights, "6").trace(tokens).logits + bias.numpy()
    got = trace_of(Reference(weights | {"head.bias": bias}, "6"), tokens).logits
    np.testing.assert_allclose(got, want, atol=BOUND * 4)


def test_att_output_bias_equals_the_ln_x_bias_it_is_the_image_of():
    weights, tokens = case("5.0", steps=16)  # 5.0 has nothing between ln_x and output
    biased, equal = dict(weights), dict(weights)
    for layer in range(3):
        att, by = f"blocks.{layer}.att.", torch.linspace(-1, 1, 96)
        biased[f"{att}output.bias"] = weights[f"{att}output.weight"] @ by
        equal[f"{att}ln_x.bias"] = weights[f"{att}ln_x.bias"] + by
    found = errors(trace_of(Reference(biased, "5.0"), tokens), Oracle(equal, "5.0").trace(tokens))
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("version", ["7", "7a"])
def test_dummy_v0_v1_v2_of_layer_0_play_no_part(version):
    weights, tokens = case(version, steps=16)
    dummies = {f"blocks.0.att.v{n}": weights[f"blocks.0.att.a{n}"] for n in range(3)}
    found = errors(trace_of(Reference(weights | dummies, version), tokens), Oracle(weights, version).trace(tokens))
    assert max(found.values()) < BOUND, found


@pytest.mark.parametrize("version", ["5.2", "6"])
def test_a_tuned_initial_state_agrees_with_time_state_in_the_rwkv_package(version):
    weights, tokens = case(version, steps=16)
    dice = Dice(seed=2)
    stored = {f"blocks.{i}.att.time_state": dice.normal(3, 32, 32) for i in range(3)}
    initial = {  # stored (head, value, key)
        name.replace("time_state", "wkv"): tensor.transpose(1, 2)[None].numpy() for name, tensor in stored.items()
    }
    want = Oracle(weights | stored, version).trace(tokens)
    found = errors(trace_of(Reference(weights, version, initial=initial), tokens), want)
    assert max(found.values()) < BOUND, found
    assert errors(trace_of(Reference(weights, version), tokens), want)["logits"] > FAR


@pytest.mark.parametrize("version", VERSIONS)
def test_prefill_equals_steps_and_leaves_its_state_as_it_was(version):
    weights, tokens = case(version, steps=9)
    session: Session = Reference(weights, version)
    start = session.step(5, session.initial_state()).state
    before, state = session.read_state(start), start
    for token in tokens:
        step = session.step(token, state)
        state = step.state
    whole = session.prefill(tokens, start)
    np.testing.assert_array_equal(whole.logits, step.logits)
    for name, array in session.read_state(whole.state).items():
        np.testing.assert_array_equal(array, session.read_state(state)[name])
    for name, array in session.read_state(start).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("version", "inner"),
    [("4", ("aa", "bb", "pp")), *((version, ("wkv",)) for version in EPS_MATTERS)],
)
def test_states_are_float64_in_graph_order_with_a_batch_axis(version, inner):
    session = Reference(case(version)[0], version)
    state = session.read_state(session.step(0, session.initial_state()).state)
    parts = ["att.shift", *(f"att.{name}" for name in inner), "ffn.shift"]
    assert list(state) == [f"blocks.{layer}.{part}" for layer in range(3) for part in parts]
    for name, array in state.items():
        assert array.dtype == np.float64
        assert array.shape == ((1, 3, 32, 32) if name.endswith("wkv") else (1, 96))


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_may_be_half_precision_tensors_or_arrays(version):
    weights, tokens = case(version, steps=4)
    rounded = {name: tensor.bfloat16() for name, tensor in weights.items()}
    arrays = {name: tensor.float().numpy() for name, tensor in rounded.items()}
    got, want = (trace_of(Reference(each, version), tokens).logits for each in (rounded, arrays))
    np.testing.assert_array_equal(got, want)


def test_placement_names_the_same_place_twice():
    placement = Reference(case("7")[0], "7").placement()
    assert placement.requested == placement.observed == "float64:cpu"


def test_bad_input_is_refused_by_name():
    weights, _ = case("7")
    with pytest.raises(WrongCall, match="unknown RWKV version '8'"):
        Reference(weights, "8")
    with pytest.raises(WrongCall, match=r"blocks\.0\.att\.wvk"):
        Reference(weights, "7", initial={"blocks.0.att.wvk": np.zeros((1, 3, 32, 32))})
    with pytest.raises(BadCheckpoint, match=r"blocks\.0\.att\.time_faaaa"):
        Reference(weights, "6")
    del weights["blocks.1.att.k_k"]
    session = Reference(weights, "7")
    with pytest.raises(BadCheckpoint, match=r"blocks\.1\.att\.k_k"):
        session.step(0, session.initial_state())
    with pytest.raises(WrongCall, match="token 101"):
        session.step(101, session.initial_state())
