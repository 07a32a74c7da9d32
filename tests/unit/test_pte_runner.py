"""The device runner: here and on emulated Arm processors it computes what the Python session does on the same file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass

from exporter import export
from exporter.quiet import quiet
from runtimes.backends import pte
from runtimes.errors import CheckFailed, WrongCall
from runtimes.pte.runner import results
from tests.conftest import AWKWARD, Exports
from tests.models import random_checkpoint
from tests.requirements import require
from tests.unit.step_programs import CPUS, TOKENS, Runner, compared, emulated, here, kernels
from validation.tolerances import bound

pytestmark = pytest.mark.slow

XNNPACK = "executorch-xnnpack"
RAN = {"NEON": set(), "dot": {"dot"}, "i8mm": {"dot"}}  # XNNPACK has no use for i8mm where there is one token
BOUNDS = {"fp32": "fp32", "8da8w": "codes", "8da4w": "codes"}


@pytest.fixture(scope="session")
def host() -> Runner:
    return here(pte.PROGRAM)


@pytest.fixture(scope="module")
def program(exports: Exports) -> Path:
    return exports("7", XNNPACK) / "model.pte"


@pytest.fixture(scope="module", params=BOUNDS)
def made(
    request: pytest.FixtureRequest, exports: Exports, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """Precision and artifact; of a single layer where it is quantised, which takes the toolchain long."""
    precision = str(request.param)
    if precision == "fp32":
        return precision, exports("7", XNNPACK)
    folder, sizes = tmp_path_factory.mktemp(precision), dict[str, Any]({**AWKWARD, "layers": 1})
    torch.save(random_checkpoint("7", **sizes, seed=3), folder / "one-layer.pth")
    (artifact,) = export(folder / "one-layer.pth", targets=[XNNPACK], precision=precision, out=folder)
    return precision, artifact


@pytest.mark.parametrize("kernel", CPUS)
def test_emulated_arm_agrees_with_the_session_here(made: tuple[str, Path], tmp_path: Path, kernel: str) -> None:
    """With 8-bit activations, processors that have dot products must have run kernels of their own."""
    precision, artifact = made
    log, row = tmp_path / "instructions" if precision == "8da4w" else None, bound(BOUNDS[precision])
    told, logits = emulated(pte.PROGRAM, CPUS[kernel], log).step(artifact / "model.pte", tmp_path)
    agreement = compared(artifact, told, logits, tmp_path)
    assert (told.machine, told.delegates) == ("aarch64", ("XnnpackBackend",))
    assert 0 < agreement.max_abs < row.max_abs  # nought would be the other processor's arithmetic, not Arm's
    assert agreement.state_rel < row.state_rel
    assert agreement.top1 == 1
    assert log is None or kernels(log) == RAN[kernel]


@pytest.mark.parametrize("version", ["4", "7"])
def test_here_it_is_the_session_to_the_last_bit(exports: Exports, host: Runner, tmp_path: Path, version: str) -> None:
    """Version 4 starts with a running maximum of -1e30, which only the program tells."""
    artifact = exports(version, XNNPACK)
    agreement = compared(artifact, *host.step(artifact / "model.pte", tmp_path), tmp_path)
    assert (agreement.calls, agreement.max_abs, agreement.state_rel, agreement.top1) == (len(TOKENS), 0, 0, 1)


def test_a_state_that_was_written_continues(program: Path, host: Runner, tmp_path: Path) -> None:
    _, whole = host.step(program, tmp_path)
    host.step(program, tmp_path, tokens=TOKENS[:12])
    _, rest = host.step(program, tmp_path, "--state", tmp_path / "state.bin", tokens=TOKENS[12:])
    np.testing.assert_array_equal(rest, whole[12:])


def test_times_are_told_where_they_mean_something_and_greedy_tokens_are_fed(program: Path, host: Runner) -> None:
    said = json.loads(host("--model", program, "--tokens", "3 4", "--bench", "5").stdout)
    assert said["fed"][:2] == [3, 4]
    assert said["fed"][2:] == said["greedy"][1:-1]
    assert len(said["decode_ms"]) == 6
    assert min(said["load_ms"], said["first_call_ms"], said["tokens_per_second"], *said["decode_ms"]) > 0
    assert said["peak_rss_bytes"] > program.stat().st_size
    emulated = json.loads(host("--model", program, "--tokens", "3 4", "--bench", "5", "--emulated").stdout)
    timed = {"cpu", "peak_rss_bytes", "load_ms", "first_call_ms", "decode_ms", "prefill_ms", "tokens_per_second"}
    assert set(said) - set(emulated) == timed
    assert emulated["digest"] == said["digest"]


class Sums(torch.nn.Module):
    """A step to do by hand: the state is its fill plus all ids so far, the logits are 2 and 3 times it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(4, 1), torch.nn.Linear(1, 4, bias=False)
        self.table.weight.data = torch.arange(4.0).reshape(4, 1)
        self.head.weight.data = torch.tensor([[2.0], [3.0], [0.0], [0.0]])

    def forward(self, tokens: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new = total + self.table(tokens).sum().reshape(1, 1)
        return self.head(new), new


def traced(ids: torch.dtype, kind: torch.dtype) -> dict[str, torch.export.ExportedProgram]:
    """Methods for one id and for three."""
    step, state = Sums().to(kind), torch.zeros(1, 1, dtype=kind)
    sizes = {"decode": 1, "prefill3": 3}
    return {name: torch.export.export(step, (torch.zeros(size, dtype=ids), state)) for name, size in sizes.items()}


def summing(folder: Path, ids: torch.dtype, *, planned: bool, kind: torch.dtype = torch.float32) -> Path:
    plan = MemoryPlanningPass(alloc_graph_input=planned, alloc_graph_output=planned)
    constants = {"state_names": "total", "state_fills": [-1e30 if kind is torch.float16 else 0.5]}
    with quiet():
        edge = to_edge_transform_and_lower(traced(ids, kind), constant_methods=constants)
        path = folder / "sums.pte"
        path.write_bytes(edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=plan)).buffer)
    return path


def summing_apart(folder: Path) -> Path:
    """With XNNPACK, the weights in sums.ptd."""
    programs = traced(torch.int64, torch.float32)
    for program in programs.values():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                node.meta.setdefault("custom", {})["delegate_constant_tag"] = "sums"
    with quiet():
        edge = to_edge_transform_and_lower(
            programs,
            partitioner={name: [XnnpackPartitioner()] for name in programs},
            constant_methods={"state_fills": [0.5]},
        )
        made = edge.to_executorch(ExecutorchBackendConfig(external_constants=lambda node: "sums"))
        (folder / "sums.pte").write_bytes(made.buffer)
        made.write_tensor_data_to_file(str(folder))
    return folder / "sums.pte"


def test_weights_that_lie_apart_are_found(host: Runner, tmp_path: Path) -> None:
    model = summing_apart(tmp_path)
    told, logits = host.step(model, tmp_path, tokens=(1, 3))
    np.testing.assert_array_equal(logits[:, :2], [[3, 4.5], [9, 13.5]])
    assert told.delegates == ("XnnpackBackend",)

    data = model.with_suffix(".ptd").rename(tmp_path / "elsewhere")
    _, again = host.step(model, tmp_path, "--data", data, tokens=(1, 3))
    np.testing.assert_array_equal(again, logits)

    done = host("--model", model)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has its weights in a file of their own, model.ptd, which was not given" in done.stderr


@pytest.mark.parametrize(("ids", "planned"), [(torch.int32, True), (torch.int64, False)])
def test_ids_of_either_type_and_memory_of_either_owner(
    host: Runner, tmp_path: Path, ids: torch.dtype, planned: bool
) -> None:
    model = summing(tmp_path, ids, planned=planned)
    told, logits = host.step(model, tmp_path, tokens=(1, 3, 2))
    np.testing.assert_array_equal(logits, [[3, 4.5, 0, 0], [9, 13.5, 0, 0], [13, 19.5, 0, 0]])
    assert np.fromfile(tmp_path / "state.bin", "<f4") == 6.5
    assert (told.greedy, told.delegates) == ((1, 1, 1), ())

    told, logits = host.step(model, tmp_path, "--chunk", 3, tokens=(1, 3, 2, 0, 0, 1, 2))
    np.testing.assert_array_equal(logits[:, 0], [13, 15, 19])
    assert told.calls == (3, 3, 1)
    assert (len(told.prefill_ms), len(told.decode_ms)) == (1, 1)


def test_a_half_state_starts_at_a_finite_value(host: Runner, tmp_path: Path) -> None:
    """-1e30 is not; twice the least fill is not either, so that what comes back is refused."""
    model = summing(tmp_path, torch.int64, planned=True, kind=torch.float16)
    done = host("--model", model, "--tokens", "1", "--state-out", tmp_path / "state.bin")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the logits after 1 tokens are not finite\n"
    np.full(1, 100, "<f2").tofile(tmp_path / "state.bin")
    _, logits = host.step(model, tmp_path, "--state", tmp_path / "state.bin", tokens=(1,))
    np.testing.assert_array_equal(logits[:, :2], [[202, 303]])


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ((), 2, "--model is missing"),
        (("--model", "absent.pte"), 2, "cannot read absent.pte"),
        (("--model", "short.bin"), 2, "short.bin is not an ExecuTorch program"),
        (("--model", "model.pte", "--data", "absent.ptd"), 2, "cannot read absent.ptd"),
        (("--model", "model.pte", "--fast"), 2, "there is no option --fast"),
        (("--model", "model.pte", "--bench", "many"), 2, "--bench is many, expected a number"),
        (("--model", "model.pte", "--tokens", "7,-1"), 2, "a token id is -1, expected a number"),
        (("--model", "model.pte", "--tokens", "7,101"), 2, "token 101 is outside the vocabulary of 101"),
        (("--model", "model.pte", "--chunk", "64"), 2, "no method prefill64, it has decode,"),
        (("--model", "model.pte", "--state", "short.bin"), 2, "short.bin is not the state of this program"),
        (("--model", "model.pte", "--logits", "absent/x.npy"), 2, "cannot write absent/x.npy"),
        (("--model", "other.pte"), 3, "needs the delegate AbsentBackend_, which this runner lacks"),
    ],
)
def test_bad_input_is_one_message(
    program: Path, host: Runner, tmp_path: Path, words: tuple[str, ...], status: int, message: str
) -> None:
    content = program.read_bytes()
    (tmp_path / "model.pte").write_bytes(content)
    (tmp_path / "other.pte").write_bytes(content.replace(b"XnnpackBackend", b"AbsentBackend_"))
    (tmp_path / "short.bin").write_bytes(content[:100].replace(b"ET12", b"none"))
    command = [*host.command, *words, "--threads", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pte", "other.pte", "short.bin"]


def test_what_came_back_is_checked(program: Path, host: Runner, tmp_path: Path) -> None:
    told, logits = host.step(program, tmp_path)
    with pytest.raises(CheckFailed, match="19 rows of logits came back for 20 calls"):
        compared(program.parent, told, logits[1:], tmp_path)
    (tmp_path / "state.bin").write_bytes(b"half")
    with pytest.raises(WrongCall, match=r"state\.bin has 4 bytes, the state has"):
        compared(program.parent, told, logits, tmp_path)
    with pytest.raises(WrongCall, match="not what rwkv-step prints: unknown key ticks"):
        results.read('{"ticks": 1}')


def test_a_promised_tool_that_lacks_fails_instead_of_skipping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_EXPORT_REQUIRE", "arm64,qnn")
    with pytest.raises(pytest.fail.Exception, match="asks for qnn, but there is none"):
        require("qnn", "there is none")
    with pytest.raises(pytest.skip.Exception, match="there is none"):
        require("tosa", "there is none")
    require("arm64", None)
