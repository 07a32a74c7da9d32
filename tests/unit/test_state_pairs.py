"""Matrix states as two float16 tensors: what the pair holds, what packages make of it, and that nothing goes unseen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools_quiet import coremltools
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch.utils._python_dispatch import TorchDispatchMode

from exporter import bundled, export, graph
from exporter.contract import Spelling
from exporter.model import open_model
from exporter.models import pairs
from exporter.passes.mil_pair import in_pairs
from exporter.progress import silent
from exporter.targets import coreml, coreml_ane
from exporter.vocabulary import encoded
from runtimes import manifest, pairing
from runtimes.backends import mil
from runtimes.contract import Artifact, Session, State, TensorSpec
from runtimes.errors import BadArtifact, WrongCall
from runtimes.manifest import open_artifact
from tests.models import VERSIONS, random_checkpoint
from tests.oracle import Trace, errors, trace_of
from tests.parity.stepping import StepModule, rows
from tests.unit.small_exports import SIZES
from validation.lint import linter
from validation.reference import Reference

pytestmark = pytest.mark.slow

MATRICES = [version for version in VERSIONS if version != "4"]
TOKENS = [3, 31, 0, 7, 7, 19, 32, 1, 5, 12]
AGAIN = [7] * 160  # one token adds the same each time, until float16 has no room for it
HALF = 5e-3  # of the largest value, after ten tokens in float16
assert coremltools  # imported quietly, before an export does it


@cache
def slow(version: str) -> dict[str, torch.Tensor]:
    """A random checkpoint that forgets 1e-4 or less a token."""
    weights = random_checkpoint(version, layers=1, **SIZES, seed=3)
    for name, value in (("w0", -8.5), ("a0", -6.0), ("time_decay", -9.0)):
        weights |= {key: torch.full_like(weights[key], value) for key in weights if key.endswith(f"att.{name}")}
    return weights


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """The slow model of a version with its state in pairs, version 7 with a function for four tokens."""
    folder = tmp_path_factory.mktemp("pairs")

    @cache
    def make(version: str) -> Artifact:
        torch.save(slow(version), folder / f"{version}.pth")
        target, prefill = ("coreml", ()) if version == "5.2" else ("coreml-ane", (4,) if version == "7" else ())
        (path,) = export(
            folder / f"{version}.pth",
            targets=[target],
            precision="fp16",
            options={"state": "hilo"},
            prefill=prefill,
            out=folder,
        )
        return open_artifact(path)

    return make


SPECS = (
    TensorSpec("blocks.*.att.shift", (2, 3), "float16", ("layer", "channel")),
    *pairing.paired(TensorSpec("blocks.*.att.wkv", (2, 1, 3, 3), "float16", ("layer", "head", "value", "key"))),
)


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.float32, (2, 1, 3, 3), elements=st.floats(-6e4, 6e4, width=32)))
def test_a_pair_holds_what_float32_does_to_23_bits_and_keeps_it(value: np.ndarray[Any, Any]) -> None:
    shift = np.zeros((2, 3), np.float16)
    parts = pairing.split(SPECS, [shift, value])
    assert [part.dtype for part in parts] == [np.float16] * 3
    _, held = pairing.summed(SPECS, parts)
    assert (np.abs(held - value) <= np.maximum(np.abs(value) * 2.0**-22, 2.0**-36)).all()
    _, again = pairing.summed(SPECS, pairing.split(SPECS, [shift, held]))
    assert np.array_equal(again, held)


@pytest.mark.parametrize(("held", "added"), [(0.1, 50.0), (50.0, 0.1), (0.1, -0.1), (3.0, 1000.0)])
def test_a_sum_keeps_what_rounds_away_whichever_part_is_larger(held: float, added: float) -> None:
    chance = torch.Generator().manual_seed(0)
    whole, more = (size * (1 + torch.rand(99, generator=chance, dtype=torch.float64)) for size in (held, added))
    high, added_in_half = whole.half(), more.half()
    low = ((whole - high.double()) * pairing.SCALE).half()
    first, second = pairs.changed((high, low), torch.zeros_like, added_in_half)
    before, after = (one.double() + other.double() / pairing.SCALE for one, other in ((high, low), (first, second)))
    error = (after - (before + added_in_half.double())).abs()
    assert (error <= 2.0**-20 * torch.maximum(whole.abs(), more.abs())).all()


def test_pairs_are_one_outside() -> None:
    wholes = pairing.wholes(SPECS)
    assert [(spec.name, spec.dtype) for spec in wholes] == [
        ("blocks.*.att.shift", "float16"),
        ("blocks.*.att.wkv", "float32"),
    ]


def whole(trace: Trace) -> Trace:
    """The trace with its pairs as one."""
    states = {name: array for name, array in trace.states.items() if not name.endswith(pairing.LOW)}
    lows = {name.removesuffix(pairing.LOW): low for name, low in trace.states.items() if name not in states}
    return Trace(
        trace.logits, {name: array + lows[name] / 2**11 if name in lows else array for name, array in states.items()}
    )


@pytest.mark.parametrize("version", MATRICES)
def test_a_step_of_pairs_is_as_exact_as_one_of_matrices(version: str) -> None:
    tokens = (TOKENS * 10)[:99]
    want = trace_of(Reference(slow(version), version), tokens)
    made = StepModule(slow(version), version, spelling=Spelling(contract="row", block=8))
    usual = max(errors(made.trace(tokens), want).values())
    made.spec = in_pairs(made.spec)
    assert max(errors(whole(made.trace(tokens)), want).values()) <= 2 * usual
    chunks = [33, 1, 2, 63]
    assert max(errors(whole(made.trace(tokens, chunks=chunks)), rows(want, chunks)).values()) <= 2 * usual


def dropping(session: Session, state: State) -> State:
    """The state without its low parts."""
    rounded = {name: array.astype(np.float16).astype(array.dtype) for name, array in session.read_state(state).items()}
    return session.write_state(rounded)


def drift(session: Session, version: str, after: Callable[[Session, State], State]) -> float:
    """The error of the matrices after AGAIN, where `after` every call the state is replaced."""
    want, state = trace_of(Reference(slow(version), version), AGAIN), session.initial_state()
    for token in AGAIN:
        state = after(session, session.step(token, state).state)
    found, name = session.read_state(state), "blocks.0.att.wkv"
    return float(np.abs(found[name] - want.states[name][-1]).max() / np.abs(want.states[name][-1]).max())


@pytest.mark.parametrize("version", ["5.0", "5.2", "6", "7"])  # 5.1 has the recurrence of 5.0, 7a that of 7
def test_a_package_keeps_what_float16_loses(made: Callable[[str], Artifact], version: str) -> None:
    session = mil.open_session(made(version), "cpu")
    found = errors(trace_of(session, TOKENS), trace_of(Reference(slow(version), version), TOKENS))
    assert max(found.values()) < HALF
    kept, lost = (drift(session, version, after) for after in (lambda _, state: state, dropping))
    assert kept < HALF / 5
    assert lost > 5 * kept


def test_prompts_leave_what_steps_do(made: Callable[[str], Artifact]) -> None:
    session, tokens = mil.open_session(made("7"), "cpu"), AGAIN[:120] + TOKENS
    start = session.initial_state()
    found, state = session.read_state(session.prefill(tokens, start).state), start
    for token in tokens:
        state = session.step(token, state).state
    for name, array in session.read_state(state).items():
        assert np.abs(found[name] - array).max() < HALF / 2 * np.abs(array).max(), name


def test_a_saved_state_is_what_the_pair_stands_for(made: Callable[[str], Artifact]) -> None:
    session = mil.open_session(made("7"), "cpu")
    state = session.prefill(AGAIN[:50] + TOKENS, session.initial_state()).state
    saved = session.read_state(state)
    assert {name: array.dtype for name, array in saved.items()} == {
        "blocks.0.att.shift": np.float16,
        "blocks.0.att.wkv": np.float32,
        "blocks.0.ffn.shift": np.float16,
    }
    again = session.write_state(saved)
    assert all(np.array_equal(array, saved[name]) for name, array in session.read_state(again).items())
    (_, high, low, _), (_, first, second, _) = (tuple(map(np.float64, each)) for each in (state, again))  # type: ignore[call-overload]
    assert np.any(low)
    error = np.abs(high + low / 2**11 - (first + second / 2**11))
    assert (error <= np.maximum(np.abs(high) * 2.0**-22, 2.0**-36)).all()


def test_parts_that_change_places_are_noticed(made: Callable[[str], Artifact]) -> None:
    artifact = made("7")
    one, high, low, other = artifact.manifest.state
    ports = (replace(high, input=low.input, output=low.output), replace(low, input=high.input, output=high.output))
    half = (replace(high, input=low.input), replace(low, input=high.input))
    for changed in (ports, half):
        lying = Artifact(artifact.folder, replace(artifact.manifest, state=(one, *changed, other)))
        trace = trace_of(mil.open_session(lying, "cpu"), TOKENS)
        assert max(errors(trace, trace_of(Reference(slow("7"), "7"), TOKENS)).values()) > 10 * HALF


def test_a_low_part_without_its_high_part_is_refused(made: Callable[[str], Artifact], tmp_path: Path) -> None:
    document = made("7").manifest
    one, high, low, other = document.state
    wrong = (replace(low, shape=(1,)), *(replace(low, scale=scale) for scale in (0.0, -0.5, 1.0)))
    for state in ((low, one, high, other), (one, low, high, other), *((one, high, each, other) for each in wrong)):
        manifest.write(replace(document, state=state), tmp_path)
        with pytest.raises(BadArtifact, match=r"att\.wkv\.low is no low part of the one before it"):
            manifest.read(tmp_path)


def test_lint_has_no_errors_and_the_readme_tells_of_the_pair(made: Callable[[str], Artifact]) -> None:
    artifact = made("7")
    found = linter.lint_artifact(artifact).findings
    assert not [finding for finding in found if finding.severity == "error"]
    readme = (artifact.folder / "README.md").read_text()
    assert "## State in two parts" in readme
    assert "`att_wkv_low` | `att_wkv_low_next`" in readme


@pytest.mark.parametrize(
    ("target", "version", "precision", "options", "why"),
    [
        (coreml_ane, "4", "fp16", {}, "RWKV-4 has no matrix"),
        (coreml, "4", "int8", {}, "RWKV-4 has no matrix"),
        (coreml_ane, "7", "fp32", {}, "fp32 keeps the state in float32"),
        (coreml, "7", "mixed", {}, "mixed keeps the state in float32"),
        (coreml, "7", "fp16", {"names": "rwkv-mobile"}, "rwkv-mobile knows no state in two parts"),
    ],
)
def test_what_gains_nothing_is_refused(
    target: Any, version: str, precision: str, options: dict[str, str], why: str
) -> None:
    defaults = {option.name: option.default for option in target.TARGETS[0].options}
    spec = StepModule(slow(version), version).spec
    with pytest.raises(WrongCall, match=why):
        target.refuse(spec, precision, {**defaults, **options, "state": "hilo"})


@pytest.mark.parametrize("target", [coreml, coreml_ane])
def test_blocks_of_the_bundled_model_stay_within_float16(target: Any) -> None:
    model = open_model(None)
    step = model.build(target.TARGETS[0].spelling)
    graph.load_weights(step, silent)
    ids = torch.tensor(list(encoded(model, bundled.HELDOUT.read_text("ascii")))[:512])
    with torch.inference_mode(), Largest() as seen:
        step(ids, *graph.arguments(model.spec, 1)[1:])
    assert seen.product < 65504 / 8


class Largest(TorchDispatchMode):
    """The largest number of any product of matrices."""

    product = 0.0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function == torch.ops.aten.bmm.default:
            self.product = max(self.product, made.abs().max().item())
        return made
