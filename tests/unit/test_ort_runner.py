"""ONNX Runtime without Python: here and on emulated Arm processors the program computes what the session does here."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import runtimes
from runtimes.agent.native import NativeSession
from runtimes.backends import ort
from runtimes.errors import BadArtifact, WrongCall
from runtimes.manifest import open_artifact
from tests.conftest import Exports
from tests.unit.step_programs import CPUS, TOKENS, Runner, compared, emulated, here, kernels
from validation.tolerances import bound

pytestmark = pytest.mark.slow

RAN = {"NEON": set(), "dot": {"dot"}, "i8mm": {"dot", "i8mm"}}
BOUNDS = {"fp32": "fp32", "int8": "codes", "int4": "codes"}
KINDS: dict[str, Callable[[Exports], Path]] = {
    "one graph up to 8": lambda exports: exports("7", "onnx-cpu", prefill=(8, 3)),
    "a fill of -1e30": lambda exports: exports("4", "onnx-cpu"),
    "ids of rank 2": lambda exports: exports("7", "onnx-cpu", options={"names": "rwkv-mobile"}),
}


@pytest.fixture(scope="session")
def host() -> Runner:
    return here(ort.PROGRAM)


@pytest.fixture(scope="module")
def artifact(exports: Exports) -> Path:
    return KINDS["one graph up to 8"](exports)


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("kernel", CPUS)
def test_emulated_arm_agrees_with_the_session_here(
    exports: Exports, tmp_path: Path, kernel: str, precision: str
) -> None:
    """With 4 bits, where all kinds of products are, each processor must have run kernels of its own."""
    log, row = tmp_path / "instructions" if precision == "int4" else None, bound(BOUNDS[precision])
    artifact = exports("7", "onnx-cpu", precision=precision)
    told, logits = emulated(ort.PROGRAM, CPUS[kernel], log).step(artifact, tmp_path)
    agreement = compared(artifact, told, logits, tmp_path)
    assert told.machine == "aarch64"
    assert 0 < agreement.max_abs < row.max_abs  # nought would be the other processor's arithmetic, not Arm's
    assert agreement.state_rel < row.state_rel
    assert agreement.top1 == 1
    assert log is None or kernels(log) == RAN[kernel]


@pytest.mark.parametrize("kind", KINDS)
def test_here_it_is_the_session_to_the_last_bit(exports: Exports, host: Runner, tmp_path: Path, kind: str) -> None:
    artifact = KINDS[kind](exports)
    agreement = compared(artifact, *host.step(artifact, tmp_path), tmp_path)
    assert (agreement.calls, agreement.max_abs, agreement.state_rel, agreement.top1) == (len(TOKENS), 0, 0, 1)


@pytest.mark.parametrize("chunk", [8, 6])
def test_several_tokens_a_call_are_too(artifact: Path, host: Runner, tmp_path: Path, chunk: int) -> None:
    told, logits = host.step(artifact, tmp_path, "--chunk", chunk)
    assert told.calls == (chunk,) * (20 // chunk) + (1,) * (20 % chunk)
    agreement = compared(artifact, told, logits, tmp_path)
    assert (agreement.max_abs, agreement.state_rel) == (0, 0)


def test_it_says_what_it_did_and_goes_on_from_a_state(artifact: Path, host: Runner, tmp_path: Path) -> None:
    whole, rows = host.step(artifact, tmp_path)
    host.step(artifact, tmp_path, tokens=TOKENS[:12])
    _, rest = host.step(artifact, tmp_path, "--state", tmp_path / "state.bin", tokens=TOKENS[12:])
    np.testing.assert_array_equal(rest, rows[12:])
    assert (whole.delegates, whole.threads, whole.fed) == ((), 1, TOKENS)
    assert whole.greedy == tuple(rows.argmax(1))
    said = json.loads(host("--model", artifact, "--tokens", "3 4", "--bench", "5").stdout)
    assert len(said["decode_ms"]) == 6
    assert said["fed"][2:] == said["greedy"][1:-1]


def test_a_session_is_answered_for(exports: Exports, host: Runner, tmp_path: Path) -> None:
    """State tensors that hold all layers are taken apart on this side."""
    folder = exports("7", "onnx-cpu", options={"state": "stacked"})
    wanted = runtimes.open_session(folder)
    command = [*host.command, "--serve", "--threads", "1"]
    far = NativeSession(command, open_artifact(folder), folder=str(folder), place="ort:cpu")
    first, expected = (session.prefill(TOKENS, session.initial_state()) for session in (far, wanted))
    np.testing.assert_array_equal(first.logits, expected.logits)
    carried = far.write_state(far.read_state(first.state))
    np.testing.assert_array_equal(far.step(5, carried).logits, wanted.step(5, expected.state).logits)
    assert (far.placement().observed, far.placement().evidence) == ("ort:cpu", "run")
    with pytest.raises(WrongCall, match="outside the vocabulary of 101"):
        far.step(101, carried)
    far.close()
    with pytest.raises(BadArtifact, match=r"has no manifest\.json"):
        NativeSession(command, open_artifact(folder), folder=str(tmp_path), place="ort:cpu")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def replaced(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    return change


def as_it_is(folder: Path) -> None:
    """Nothing is wrong with it."""


@pytest.mark.parametrize(
    ("harm", "words", "status", "message"),
    [
        (as_it_is, ("--data", "x"), 2, "there is no option --data, see rwkv-step-ort --help"),
        (as_it_is, ("--tokens", "7,101"), 2, "token 101 is outside the vocabulary of 101"),
        (as_it_is, ("--chunk", "9"), 2, "no graph takes 9 tokens a call, there are graphs for 1, up to 3, up to 8"),
        (as_it_is, ("--state", "manifest.json"), 2, "manifest.json is not the state of this program"),
        (without("manifest.json"), (), 2, "is not an artifact: it has no manifest.json"),
        (without("model.onnx"), (), 2, "ONNX Runtime refuses model.onnx: "),
        (without("model.onnx.data"), (), 2, "ONNX Runtime refuses model.onnx: "),
        (replaced('"file": "model.onnx"', '"file": "manifest.json"'), (), 2, "ONNX Runtime refuses manifest.json: "),
        (replaced('"logits"', '"odds"'), (), 2, "model.onnx lacks odds"),
        (replaced('"dtype": "float32"', '"dtype": "float16"'), (), 2, "is float16, expected float32"),
        (replaced('"scale": null', '"scale": 0.5'), (), 2, "is half of a state, which this program cannot join"),
        (replaced('"initial_state": null', '"initial_state": "tuned.npz"'), (), 3, "does not read tuned.npz"),
    ],
)
def test_bad_input_is_one_message(
    artifact: Path,
    host: Runner,
    tmp_path: Path,
    harm: Callable[[Path], None],
    words: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    folder = shutil.copytree(artifact, tmp_path / "artifact")
    harm(folder)
    command = [*host.command, "--model", ".", *words, "--threads", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_the_pinned_library_is_the_one_that_sessions_here_use() -> None:
    """So that a difference between the two is the processor's."""
    pins = ort.SCRIPT.with_name("onnxruntime.txt").read_text(encoding="utf-8")
    constraints = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")
    (pinned,) = [line.split()[0] for line in pins.splitlines() if line.startswith("onnxruntime==")]
    assert pinned in constraints.split()
    assert pins.count("--hash=sha256:") == 2
