"""Rows of artifacts that ran, could not run, ran elsewhere or raised; nothing that did not run is a pass."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_rnn import PLACE, VOCAB, session, specs

import validation
from runtimes import manifest, registry
from runtimes.contract import Artifact, Session
from runtimes.errors import BadArtifact, Missing, WrongCall
from runtimes.manifest import StateTensor
from validation import outcome
from validation.outcome import Latency, Outcome, Parity, Results
from validation.rows import Row
from validation.runner import exit_code, measure, validate, weight_bytes
from validation.tolerances import bound

CHECKPOINT = manifest.Source("small.pth", "pth", 10, "5" * 64)


class Runtime:
    """The runtime "fake", whose session each test chooses."""

    READS = (".fake",)
    DEVICES = ("cpu", "npu", "npu-emulator")
    make: Callable[[], Session] = staticmethod(session)

    def missing(self, device: str) -> str | None:
        return "there is no NPU in this machine" if device.startswith("npu") else None

    def open_session(self, artifact: Artifact, device: str) -> Session:
        return self.make()


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """The only runtime there is."""
    fake = Runtime()

    def load(name: str) -> Runtime:
        if name != "fake":
            raise WrongCall(f"unknown runtime {name!r}")
        return fake

    monkeypatch.setattr(registry, "load", load)
    return fake


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "small.fake.fp32")


def write_artifact(folder: Path, *, sizes: tuple[int, ...] = (1, 4), graph: str = "graph.fake", **target: str) -> Path:
    folder.mkdir()
    for name, length in (("graph.fake", 100), ("graph.data", 1000), ("README.md", 7), ("tuned.npz", 0)):
        (folder / name).write_bytes(bytes(length))
    made_for = {"name": "fake", "runtime": "fake", "device": "cpu", "precision": "fp32", "tolerance": "fp32"} | target
    np.savez(folder / "tuned.npz", **{spec.name: spec.initial() for spec in specs("float32")})
    document = manifest.Manifest(
        schema=manifest.SCHEMA,
        model=manifest.Model("small", "4", 1, 6, 2, 3, VOCAB, 64e-5, 500),
        source=CHECKPOINT,
        target=manifest.Target(**made_for),
        precision=manifest.Precision("fp32", "fp32"),
        graphs=tuple(manifest.Graph(size, graph, "tokens", "int64", "logits") for size in sizes),
        state=tuple(StateTensor(s.name, s.shape, s.dtype, s.axes, s.fill, s.name, s.name) for s in specs("float32")),
        tokenizer=manifest.Tokenizer("none"),
        files=manifest.list_files(folder),
        tools={},
        initial_state="tuned.npz",
    )
    manifest.write(document, folder)
    return folder


class Reference:
    """Opens the checkpoint, counting how often."""

    def __init__(self) -> None:
        self.opened: list[Path] = []

    def __call__(self, checkpoint: Path, *, ln_x_eps: float) -> Session:
        assert ln_x_eps == 64e-5
        self.opened.append(checkpoint)
        return session("float64")


def found(source: manifest.Source) -> Path:
    assert source == CHECKPOINT
    return Path("small.pth")


def only(results: Results) -> Parity:
    (row,) = results.parity
    return row


def test_artifact_that_agrees_with_its_checkpoint_passes(runtime: Runtime, artifact: Path, tmp_path: Path) -> None:
    results = validate([artifact], steps=8, find=found, reference=Reference())
    row = only(results)
    assert (row.outcome, row.reasons, row.steps) == (Outcome.PASS, (), 8)
    ran = outcome.Identity("small.fake.fp32", "small", "4", "fake", "fp32", PLACE, PLACE, {"nodes": 9}, "run")
    digest = hashlib.sha256((artifact / "manifest.json").read_bytes()).hexdigest()
    assert row.identity == dataclasses.replace(ran, digest=digest)
    assert set(row.prefill) == {"1", "4", "uneven"}
    assert exit_code(results) == 0
    outcome.write(results, tmp_path / "results.json")
    assert outcome.read(tmp_path / "results.json") == results


def test_reference_is_run_once_for_all_artifacts_of_a_checkpoint(runtime: Runtime, artifact: Path) -> None:
    other, reference = write_artifact(artifact.with_name("other"), sizes=(1,)), Reference()
    results = validate([artifact, other], steps=4, find=found, reference=reference)
    assert [row.identity.artifact for row in results.parity] == ["small.fake.fp32", "other"]
    assert reference.opened == [Path("small.pth")]


def test_an_artifact_of_another_norm_is_compared_with_a_trace_of_its_own(runtime: Runtime, artifact: Path) -> None:
    other, opened = write_artifact(artifact.with_name("other")), list[float]()
    document = manifest.read(other)
    manifest.write(dataclasses.replace(document, model=dataclasses.replace(document.model, ln_x_eps=1e-5)), other)

    def reference(checkpoint: Path, *, ln_x_eps: float) -> Session:
        opened.append(ln_x_eps)
        return session("float64")

    validate([artifact, other], steps=4, find=found, reference=reference)
    assert opened == [64e-5, 1e-5]


def test_seed_changes_the_tokens(runtime: Runtime, artifact: Path) -> None:
    rows = [only(validate([artifact], steps=4, seed=seed, find=found, reference=Reference())) for seed in (0, 0, 1)]
    assert rows[0] == rows[1]
    assert rows[0].free != rows[2].free


def test_only_what_a_compiler_made_for_an_absent_device_is_compiled(runtime: Runtime, artifact: Path) -> None:
    delegated = manifest.Coverage({"NpuBackend": 1}, {}, {}, 1, 0, 1, 0)
    document = manifest.read(artifact)
    graphs = tuple(dataclasses.replace(graph, coverage=delegated) for graph in document.graphs)
    manifest.write(dataclasses.replace(document, graphs=graphs), artifact)
    results = validate([artifact], on=["fake:npu", "fake"], steps=4, quality=True, find=found, reference=Reference())
    absent, ran = results.parity
    assert (absent.outcome, ran.outcome) == (Outcome.COMPILED, Outcome.PASS)
    assert [(row.outcome, "no tokenizer" in row.reasons[0]) for row in results.quality] == [
        (Outcome.COMPILED, False),
        (Outcome.MISSING, True),
    ]
    assert exit_code(results) == 3
    emulated = only(validate([artifact], on=["fake:npu-emulator"], steps=4, find=found, reference=Reference()))
    assert emulated.outcome is Outcome.MISSING, "it could be installed, and nothing was shown"


@pytest.mark.parametrize("work", [validate, measure])
def test_what_a_compiler_made_and_was_damaged_since_is_not_called_compiled(
    runtime: Runtime, artifact: Path, work: Callable[..., Results]
) -> None:
    delegated = manifest.Coverage({"NpuBackend": 1}, {}, {}, 1, 0, 1, 0)
    document = manifest.read(artifact)
    graphs = tuple(dataclasses.replace(graph, coverage=delegated) for graph in document.graphs)
    manifest.write(dataclasses.replace(document, graphs=graphs), artifact)
    (artifact / "graph.data").write_bytes(bytes(999))
    results = work([artifact], on=["fake:npu"])
    assert [row.outcome for row in (*results.parity, *results.latency)] == [Outcome.ERROR]


def test_what_needs_a_package_that_is_not_installed_is_missing(runtime: Runtime, artifact: Path) -> None:
    def find(source: manifest.Source) -> Path:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    (row,) = validate([artifact], steps=4, find=find, reference=Reference()).parity
    assert row.outcome is Outcome.MISSING
    assert "the Python package torch" in row.reasons[0]


def test_an_artifact_that_is_replaced_meanwhile_is_not_taken_for_the_one_that_was_listed(
    runtime: Runtime, artifact: Path
) -> None:
    def replaced(row: Row) -> None:
        document = manifest.read(artifact)
        target = dataclasses.replace(document.target, precision="other")
        manifest.write(dataclasses.replace(document, target=target), artifact)

    rows = validate([artifact, artifact], steps=4, find=found, reference=Reference(), keep=replaced).parity
    assert [row.outcome for row in rows] == [Outcome.PASS, Outcome.ERROR]
    assert "was replaced while this ran" in rows[1].reasons[0]


def test_an_artifact_of_a_known_target_does_not_choose_its_own_bound(runtime: Runtime, tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "art", name="onnx-cpu", precision="fp32", tolerance="int4")
    row = only(validate([folder], steps=4, find=found, reference=Reference()))
    assert row.bound == bound("fp32")


def test_missing_device_is_a_row_with_its_reason_and_no_reference_is_run(runtime: Runtime, artifact: Path) -> None:
    reference = Reference()
    results = validate([artifact], on=["fake:npu", "fake"], steps=4, find=found, reference=reference)
    missing, ran = results.parity
    assert missing.outcome is Outcome.MISSING
    assert missing.reasons[0].startswith("fake:npu cannot run here: there is no NPU in this machine")
    assert (missing.identity.requested, missing.identity.observed, missing.free) == ("fake:npu", "", None)
    assert (ran.outcome, ran.identity.requested) == (Outcome.PASS, "fake:cpu")
    assert exit_code(results) == 3
    validate([artifact], on=["fake:npu"], steps=4, find=found, reference=reference)
    assert len(reference.opened) == 1


def test_missing_checkpoint_is_a_row_with_its_hint(runtime: Runtime, artifact: Path) -> None:
    def lost(source: manifest.Source) -> Path:
        raise Missing("the checkpoint small.pth is not here", hint="name it with --checkpoint")

    row = only(validate([artifact], steps=4, find=lost, reference=Reference()))
    assert row.outcome is Outcome.MISSING
    assert row.reasons == ("the checkpoint small.pth is not here (name it with --checkpoint)",)


def test_whatever_a_backend_raises_is_an_error_row(runtime: Runtime, artifact: Path) -> None:
    def crash() -> Session:
        raise RuntimeError("unsupported operator wkv")

    runtime.make = crash
    results = validate([artifact, artifact], steps=4, find=found, reference=Reference())
    assert [row.outcome for row in results.parity] == [Outcome.ERROR, Outcome.ERROR]
    assert results.parity[0].reasons == ("RuntimeError: unsupported operator wkv",)
    assert exit_code(results) == 1
    assert measure([artifact]).latency[0].outcome is Outcome.ERROR


def test_interrupt_passes_through(runtime: Runtime, artifact: Path) -> None:
    def interrupt() -> Session:
        raise KeyboardInterrupt

    runtime.make = interrupt
    with pytest.raises(KeyboardInterrupt):
        validate([artifact], steps=4, find=found, reference=Reference())


@pytest.mark.parametrize(
    ("target", "sentence"),
    [({"tolerance": "fp31"}, "unknown tolerance 'fp31'"), ({"runtime": "other"}, "unknown runtime 'other'")],
)
def test_artifact_of_another_world_is_an_error_row(
    runtime: Runtime, tmp_path: Path, target: dict[str, str], sentence: str
) -> None:
    folder = write_artifact(tmp_path / "odd", **target)
    row = only(validate([folder], steps=4, find=found, reference=Reference()))
    assert row.outcome is Outcome.ERROR
    assert row.reasons[0].startswith(sentence)


def test_altered_artifact_is_an_error_row_and_a_folder_without_manifest_is_refused(
    runtime: Runtime, artifact: Path, tmp_path: Path
) -> None:
    (artifact / "graph.data").write_bytes(b"\1" * 1000)
    row = only(validate([artifact], steps=4, find=found, reference=Reference()))
    assert row.outcome is Outcome.ERROR
    assert "does not match its SHA-256" in row.reasons[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadArtifact, match="is not an artifact"):
        validate([artifact, tmp_path / "empty"], steps=4, find=found, reference=Reference())


def test_calls_that_cannot_be_meant_are_refused_before_anything_runs(runtime: Runtime, artifact: Path) -> None:
    reference, other = Reference(), write_artifact(artifact.with_name("other"), graph="graph.data")
    for wrong in (
        lambda: validate([], find=found, reference=reference),
        lambda: validate([artifact], on=["fake:gpu"], find=found, reference=reference),
        lambda: validate([artifact, other], on=["fake"], find=found, reference=reference),
        lambda: measure([artifact, other], on=["fake:npu"]),
        lambda: validate([artifact], steps=2, find=found, reference=reference),
        lambda: measure([artifact], prompt=0),
        lambda: measure([artifact], tokens=0),
    ):
        with pytest.raises(WrongCall):
            wrong()
    assert reference.opened == []


def test_another_checkpoint_is_refused_by_its_hash(runtime: Runtime, artifact: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"emb.weight": np.ones((2, 2), np.float32)}, tmp_path / "wrong.safetensors")
    row = only(validate([artifact], checkpoint=tmp_path / "wrong.safetensors", steps=4, reference=Reference()))
    assert row.outcome is Outcome.ERROR
    assert "the artifact was made from small.pth with 555555555555..." in row.reasons[0]


def test_timing_keeps_samples_sizes_and_place(runtime: Runtime, artifact: Path) -> None:
    results = measure([artifact], prompt=6, tokens=32)
    (row,) = results.latency
    assert (row.outcome, row.reasons, row.identity.observed) == (Outcome.PASS, (), PLACE)
    assert row.decode and row.prefill
    assert (len(row.decode.seconds), row.decode.tokens, row.prefill.tokens) == (32, 1, 6)
    assert row.load_s > 0
    assert row.first_token_s > 0
    assert row.weight_bytes == 1100
    assert row.state_bytes == 4 * (6 + 18 + 6)
    assert results.machine.cores >= 1
    assert results.machine.packages["numpy"] == np.__version__
    assert exit_code(results) == 0


def test_timing_on_another_device_is_a_fallback(runtime: Runtime, artifact: Path) -> None:
    runtime.make = lambda: session(observed="fake:host")
    results = measure([artifact], prompt=2, tokens=4)
    assert results.latency[0].outcome is Outcome.FALLBACK
    assert results.latency[0].reasons == ("asked for fake:cpu, ran on fake:host (nodes: 9)",)
    assert exit_code(results) == 1


def test_timing_of_nan_is_a_failure_without_numbers(runtime: Runtime, artifact: Path) -> None:
    runtime.make = lambda: session(fault=lambda calls, logits, new: (logits * np.float32("nan"), new))
    (row,) = measure([artifact], prompt=2, tokens=4).latency
    assert (row.outcome, row.decode) == (Outcome.FAIL, None)
    assert "NaN" in row.reasons[0]


def test_missing_device_is_not_timed(runtime: Runtime, artifact: Path) -> None:
    results = measure([artifact], on=["fake:npu"])
    assert results.latency[0].outcome is Outcome.MISSING
    assert exit_code(results) == 3


def test_sessions_are_closed_even_when_they_raise(runtime: Runtime, artifact: Path) -> None:
    closed = []

    def make() -> Session:
        made = session(fault=lambda calls, logits, new: 1 / 0)  # type: ignore[arg-type, return-value]
        made.close = lambda: closed.append(True)  # type: ignore[method-assign]
        return made

    runtime.make = make
    assert only(validate([artifact], steps=4, find=found, reference=Reference())).outcome is Outcome.ERROR
    assert measure([artifact]).latency[0].outcome is Outcome.ERROR
    assert closed == [True, True]


def test_exit_code_is_zero_only_if_every_row_passed(artifact: Path) -> None:
    machine = validation.runner.machine.describe()
    identity = outcome.Identity("a", "m", "7", "t", "fp32", PLACE, PLACE)

    def code(*outcomes: Outcome) -> int:
        rows = tuple(Parity(identity, item, (), steps=4) for item in outcomes)
        return exit_code(Results(outcome.SCHEMA, machine, parity=rows))

    assert code(Outcome.PASS, Outcome.PASS) == 0
    assert code() == 3
    assert code(Outcome.PASS, Outcome.MISSING) == 3
    for bad in (Outcome.FAIL, Outcome.FALLBACK, Outcome.SUSPICIOUS, Outcome.ERROR):
        assert code(Outcome.PASS, bad) == code(Outcome.MISSING, bad) == 1
    timed = (Latency(identity, Outcome.ERROR, ("it raised",)),)
    assert exit_code(Results(outcome.SCHEMA, machine, latency=timed)) == 1
    read = (outcome.Quality(identity, Outcome.FAIL, ("too far",), "a text"),)
    assert exit_code(Results(outcome.SCHEMA, machine, quality=read)) == 1


def test_weights_are_every_file_but_words(artifact: Path) -> None:
    document = manifest.read(artifact)
    assert weight_bytes(document) == 1100
    assert weight_bytes(dataclasses.replace(document, tokenizer=manifest.Tokenizer("world", "graph.data"))) == 100


def test_a_folder_of_artifacts_stands_for_all_of_them(runtime: Runtime, artifact: Path) -> None:
    write_artifact(artifact.parent / "other", sizes=(1,))
    (artifact.parent / ".other.99.part").mkdir()
    write_artifact(artifact.parent / ".other.99.older", sizes=(1,))
    results = validate([artifact.parent], steps=8, find=found, reference=Reference())
    assert [row.identity.artifact for row in results.parity] == sorted([artifact.name, "other"])


def test_a_folder_without_artifacts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="is not an artifact and holds none"):
        validate([tmp_path], steps=8)
