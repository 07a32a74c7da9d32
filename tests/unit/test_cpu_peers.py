"""The comparison with other engines: its protocol, its ratios, who drops out of it, and how models are converted."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from exporter.checkpoint import open_checkpoint
from exporter.synth import synth
from runtimes.errors import CheckFailed, Missing, WrongCall

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
VOCAB = 300
LLAMA_BUILD = os.environ.get("LLAMA_CPP_DIR")

FAKE = """
import sys, time
import numpy as np
from peers.protocol import serve

name, turns, off, lives = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
class Fake:
    def __init__(self): self.left = lives
    def note(self, what, count):
        self.left -= 1
        if self.left < 0: sys.exit("out of memory, says the fake")
        with open(turns, "a") as file: print(name, what, count, file=file)
    def decode(self, count):
        self.note("decode", count)
        return [0.25] * count if "llama" in name else [0.125] * count
    def prefill(self, count):
        self.note("prefill", count)
        return 2.0
    def logits(self): return np.arange(300, dtype=np.float32) + off
serve(Fake(), {"load_seconds": 0.5, "version": "1.0"})
"""


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("LLAMA_CPP_DIR", "RWKV_CPP_DIR"):
        monkeypatch.delenv(name, raising=False)


def peers(name: str) -> Any:
    return importlib.import_module(f"peers.{name}")


def script() -> Any:
    return importlib.import_module("cpu_peers")


class FakeKind:
    """An engine that takes no time: `off` is added to its logits, `lives` is how many requests it survives."""

    def __init__(self, name: str, folder: Path, *, off: float = 0.0, lives: int = 1000) -> None:
        self.name, self.turns = name, folder / "turns"
        self._program, self._off, self._lives = folder / "fake.py", off, lives
        self._program.write_text(FAKE, encoding="utf-8")

    def prepare(self, checkpoint: Path, precision: str) -> Any:
        return peers("contract").Prepared(Path(precision), 2000, 1000)

    def command(self, model: Path, threads: int) -> list[object]:
        title = f"{self.name}-{model}"
        return [sys.executable, self._program, title, self.turns, str(self._off), str(self._lives)]

    def environment(self, threads: int) -> dict[str, str]:
        return {}


@pytest.fixture
def setting(tmp_path: Path) -> Any:
    measures = {"decode": "decode 3", "prefill 8": "prefill 8 2"}
    reference = np.arange(VOCAB, dtype=np.float32)
    return peers("measuring").Setting("tiny", 1, tmp_path / "none.pth", reference, measures, 2, tmp_path)


def race(kinds: list[Any], setting: Any, presets: tuple[str, ...] = ("int8",)) -> list[Any]:
    return list(peers("measuring").compare(kinds, presets, [], setting))


def row(engine: str, precision: str, decode: list[list[float]], **more: Any) -> Any:
    samples = {"decode": tuple(tuple(seconds) for seconds in decode)}
    return peers("contract").Row("tiny", 1, engine, precision, **{"samples": samples} | more)


class FakeModel:
    def decode(self, count: int) -> list[float]:
        return [0.1] * count

    def prefill(self, count: int) -> float:
        return count / 100

    def logits(self) -> Any:
        return np.array([1.0, 2.0])


def test_a_worker_answers_every_request(tmp_path: Path) -> None:
    respond, model = peers("protocol").respond, FakeModel()
    assert respond(model, "decode 3\n") == {"seconds": [0.1, 0.1, 0.1]}
    assert respond(model, "prefill 50 2\n") == {"seconds": [0.5, 0.5]}
    path = tmp_path / "two words.f32"
    assert respond(model, f"logits step 4 {path}\n") == {"written": True}
    assert np.fromfile(path, np.float32).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("line", ["", "decode", "prefill 3", "logits sideways 4 x", "sing"])
def test_a_request_that_is_not_understood_is_an_error(line: str) -> None:
    assert respond_error(line) == "not understood"


def respond_error(line: str) -> object:
    return peers("protocol").respond(FakeModel(), line)["error"]


@pytest.mark.parametrize("line", ["no json", "[1]", "", '{"error": "full"}'])
def test_what_is_no_answer_is_refused_with_the_name_of_the_engine(line: str) -> None:
    with pytest.raises(CheckFailed, match=r"llama\.cpp Q8_0"):
        peers("protocol").parse(line, "llama.cpp Q8_0")


def engine(tmp_path: Path, program: str) -> Any:
    env = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    return peers("protocol").Engine("the fake", [sys.executable, "-c", program], env=env, log=tmp_path / "log")


def test_an_illegal_instruction_is_told_in_a_sentence_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="SIGILL") as caught:
        engine(tmp_path, f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})")
    assert "--no-amx" in str(caught.value.hint)


def test_an_engine_that_ends_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"ended with exit code 1: cannot load it"):
        engine(tmp_path, "import sys; sys.exit('cannot load it')")
    with pytest.raises(CheckFailed, match=r"was ended by SIGABRT: it said nothing"):
        engine(tmp_path, "import os; os.abort()")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="there is no /proc to read memory from")
def test_memory_is_the_engine_s_own_and_not_inherited_from_the_parent(tmp_path: Path) -> None:
    held = np.ones(40_000_000)  # 320 MB here
    running = engine(tmp_path, "print('{}', flush=True); input()")
    try:
        memory = peers("protocol").resident(running.pid)
    finally:
        running.close()
    assert held.nbytes > 5 * memory["peak_rss_bytes"] > 0
    assert memory["rss_bytes"] == memory["anonymous_bytes"] + memory["file_bytes"]


def test_settings_of_thread_pools_do_not_reach_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = peers("protocol").environment({"RWKV_EXPORT_THREADS": "2"})
    assert "OMP_NUM_THREADS" not in made
    assert made["RWKV_EXPORT_THREADS"] == "2"


def test_ratios_are_taken_within_a_round() -> None:
    ours = row("ours", "int8", [[0.1, 0.2, 0.3], [0.4], [0.5]])  # 5, 2.5 and 2 tokens a second
    peer = row("llama.cpp", "Q8_0", [[0.4], [0.4, 0.4], [2.0]])  # 2.5, 2.5 and 0.5
    (found,) = peers("stats").ratios([peer, ours])
    assert (found.ours, found.peer, found.precision, found.rounds) == ("int8", "llama.cpp", "Q8_0", 3)
    assert [found.ratio.median, found.ratio.low, found.ratio.high] == pytest.approx([2.0, 1.0, 4.0])


def test_only_equal_bits_of_one_size_are_compared() -> None:
    ours, rounds = row("ours", "int4", [[0.1]]), [[0.1]]
    others = [row("llama.cpp", "Q8_0", rounds), row("llama.cpp", "F16", rounds), row("ours", "fp32", rounds)]
    assert peers("stats").ratios([ours, *others, row("llama.cpp", "Q4_0", rounds, missing="gone")]) == []
    assert len(peers("stats").ratios([ours, row("rwkv.cpp", "Q4_0", rounds)])) == 1


def test_rounds_that_are_lacking_on_one_side_are_not_passed_over() -> None:
    with pytest.raises(ValueError, match="zip"):
        peers("stats").ratios([row("ours", "int8", [[0.1], [0.1]]), row("llama.cpp", "Q8_0", [[0.1]])])


def test_a_prompt_counts_all_its_tokens() -> None:
    samples = {"prefill 64": ((0.5, 0.25, 1.0),)}
    assert peers("stats").rates(row("ours", "int8", [], samples=samples), "prefill 64") == [128]


def test_bytes_a_second_are_those_of_decode_and_the_limit_is_that_of_as_many_threads() -> None:
    stats, bandwidth = peers("stats"), peers("contract").Bandwidth
    assert stats.gigabytes_per_second(row("ours", "int8", [[0.1]], bytes_per_token=10**9)) == pytest.approx(10)
    found = [bandwidth(1, "4K", 10.0, "C"), bandwidth(1, "2M", 12.0, "C"), bandwidth(2, "2M", 20.0, "C")]
    assert [stats.limit(found, threads) for threads in (1, 2, 3)] == [12.0, 20.0, None]


def test_engines_are_asked_in_turn_measure_by_measure(tmp_path: Path, setting: Any) -> None:
    kinds = [FakeKind("llama.cpp", tmp_path), FakeKind("ours", tmp_path)]
    rows = race(kinds, setting)
    assert [(row.engine, row.precision, row.missing) for row in rows] == [
        ("llama.cpp", "Q8_0", None),
        ("ours", "int8", None),
    ]
    assert rows[1].samples == {"decode": ((0.125,) * 3,) * 2, "prefill 8": ((2.0, 2.0),) * 2}
    assert (rows[1].bytes_per_token, rows[1].load_seconds, rows[1].errors) == (1000, 0.5, {"step": 0.0, "prefill": 0.0})
    asked = [line.split() for line in kinds[0].turns.read_text().splitlines()]
    decodes = [name for name, what, count in asked if (what, count) == ("decode", "3")]
    assert decodes == ["llama.cpp-Q8_0", "ours-int8"] * 3  # one round warms up
    ratios = {ratio.measure: ratio.ratio.median for ratio in peers("stats").ratios(rows)}
    assert ratios == {"decode": 2.0, "prefill 8": 1.0}


def test_presets_follow_each_other_with_their_equal_bits(tmp_path: Path) -> None:
    kinds = [FakeKind("llama.cpp", tmp_path), FakeKind("ours", tmp_path), FakeKind("rwkv.cpp", tmp_path)]
    line = peers("measuring").line_up(kinds, ["int8", "int4", "int4-b128"])
    titles = ["llama.cpp Q8_0", "ours int8", "rwkv.cpp Q8_0", "llama.cpp Q4_0", "ours int4", "rwkv.cpp Q4_0"]
    titles.append("ours int4-b128")  # the same peers, loaded once
    assert [competitor.title for competitor in line] == titles


def test_who_is_absent_crashes_or_computes_something_else_is_missing_and_the_others_go_on(
    tmp_path: Path, setting: Any
) -> None:
    absent = peers("contract").Absent("rwkv.cpp", Missing("no checkout is named", hint="name one"))
    kinds = [FakeKind("llama.cpp", tmp_path, off=1e6), FakeKind("ours", tmp_path), absent]
    rows = {row.engine: row for row in race(kinds, setting)}
    assert "computes another function" in rows["llama.cpp"].missing
    assert rows["rwkv.cpp"].missing == "no checkout is named (name one)"
    assert rows["ours"].missing is None
    assert rows["rwkv.cpp"].samples == rows["llama.cpp"].samples == {}
    assert peers("stats").ratios(list(rows.values())) == []

    crashing = [FakeKind("llama.cpp", tmp_path, lives=4), FakeKind("ours", tmp_path)]  # 2 checks, then 2 requests
    rows = {row.engine: row for row in race(crashing, setting)}
    assert "out of memory, says the fake" in rows["llama.cpp"].missing
    assert len(rows["ours"].samples["decode"]) == 2


def test_a_peer_whose_conversion_is_not_close_is_not_measured(tmp_path: Path, setting: Any) -> None:
    measuring = peers("measuring")
    close, wrong = (FakeKind("llama.cpp", tmp_path, off=off) for off in (0.5, 5.0))
    assert measuring.judge_conversion(close, setting).errors["step"] == pytest.approx(0.5 / 172.9, rel=1e-2)
    conversion = measuring.judge_conversion(wrong, setting)
    assert "where 1% is allowed" in conversion.missing
    (refused,) = measuring.compare([wrong], ["int8"], [conversion], setting)
    assert refused.missing == conversion.missing


def test_logits_that_are_not_finite_or_of_another_model_are_an_error() -> None:
    error, reference = peers("measuring").relative_error, np.ones(3, np.float32)
    assert error(reference * 1.5, reference) == pytest.approx(0.5)
    assert np.isnan(error(np.array([1, np.inf, 1], np.float32), reference))
    assert np.isnan(error(np.ones(4, np.float32), reference))


def printed(rows: list[Any]) -> str:
    console = Console(file=io.StringIO(), width=160)
    peers("report").show(rows, [], console)
    return str(console.file.getvalue())


def test_a_missing_row_is_printed_as_missing_and_never_as_a_number(tmp_path: Path) -> None:
    rows = [
        row("ours", "int8", [], samples={}, missing="no precision int8"),
        row("llama.cpp", "Q8_0", [], samples={}, missing="x"),
    ]
    text = printed(rows)
    assert "ours int8  missing: no precision int8" in text
    assert "tok/s" not in text
    peers("plot").draw([row("ours", "int8", [[0.1]]), rows[1]], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_more_or_far_fewer_processors_than_threads_are_told() -> None:
    rows = [row(name, "int8", [[0.1]], cores=cores) for name, cores in (("a", 1.9), ("b", 1.02), ("c", 0.4))]
    assert peers("report").oddities(rows) == [
        "a int8 kept 1.9 processors busy where 1 was asked",
        "c int8 kept 0.4 processors busy where 1 was asked: other programs were in the way",
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synth("7", out=tmp_path_factory.mktemp("tiny") / "tiny.pth")


def test_gguf_tensors_have_the_shapes_and_types_llama_cpp_reads(tiny: Path) -> None:
    weights = open_checkpoint(tiny)
    found = dict(peers("gguf_file").gguf_tensors(weights, 2))
    assert len(found) == 6 + 2 * 28
    ln, half, full = found["blk.1.attn_norm_2.bias"], np.float16, np.float32
    assert np.array_equal(ln, weights["blocks.1.ln2.bias"].float().numpy())
    shapes = {
        "token_embd.weight": ((257, 128), half),
        "blk.0.time_mix_lerp_fused.weight": ((6, 1, 1, 128), full),
        "blk.1.time_mix_w1.weight": ((32, 128), full),
        "blk.1.time_mix_g2.weight": ((128, 32), half),
        "blk.1.time_mix_r_k.weight": ((128,), full),
        "blk.1.channel_mix_lerp_k.weight": ((128,), full),
        "blk.1.channel_mix_key.weight": ((512, 128), half),
    }
    assert {name: (found[name].shape, found[name].dtype) for name in shapes} == shapes
    assert np.array_equal(found["blk.1.time_mix_a1.weight"].T, weights["blocks.1.att.a1"].half().numpy())
    assert np.array_equal(found["blk.0.time_mix_v1.weight"], found["blk.0.time_mix_a1.weight"])  # unread, right shape
    assert np.array_equal(
        found["blk.0.time_mix_lerp_fused.weight"][3, 0, 0], weights["blocks.0.att.x_v"].float().numpy()[0, 0]
    )


@pytest.fixture
def gguf_py(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the package gguf is imported from: llama.cpp's source, or wherever it is installed."""
    if LLAMA_BUILD:
        llama = peers("llama")
        monkeypatch.syspath_prepend(llama.source_of(llama.check_build(Path(LLAMA_BUILD))) / "gguf-py")
    gguf = pytest.importorskip("gguf", reason="gguf is not installed, and LLAMA_CPP_DIR names no build of llama.cpp")
    return Path(gguf.__file__).parents[1]


def test_the_gguf_file_has_every_tensor_the_gguf_package_lists_for_rwkv7(
    tiny: Path, tmp_path: Path, gguf_py: Path
) -> None:
    gguf = importlib.import_module("gguf")
    path = peers("gguf_file").write_gguf(tiny, tmp_path / "tiny.gguf", gguf_py)
    read = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    listed = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.RWKV7]}
    names = {name.rpartition(".")[0] for name in read}
    assert names == {name.format(bid=layer) for name in listed for layer in (0, 1)} - {"blk.1.token_embd_norm"}
    table, unread = 257 * 128 * 2, 128 * 4 + 2 * 32 * 128 * 2
    assert peers("gguf_file").bytes_per_token(path, gguf_py) == sum(read.values()) - table - unread


def test_layer_0_is_stored_for_rwkv_cpp_without_its_value_residual(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "stripped.pth"
    peers("rwkvcpp").write_without_unused(tiny, path)
    kept = torch.load(path, weights_only=True)
    assert set(torch.load(tiny, weights_only=True)) - set(kept) == {f"blocks.0.att.v{i}" for i in range(3)}
    assert kept["emb.weight"].dtype == torch.bfloat16


def test_bandwidth_is_plausible_and_falls_back_to_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bandwidth = peers("bandwidth")
    (numpy,) = without_compiler(bandwidth, tmp_path, monkeypatch)
    assert (numpy.method, numpy.pages) == ("numpy", "default")
    assert 0.1 < numpy.gb_per_s < 2000
    if not peers("build").compiler("CC", "cc", "gcc", "clang"):
        pytest.skip("there is no C compiler")
    found = bandwidth.measure([1], tmp_path, megabytes=64)
    assert [(each.pages, each.method) for each in found] == [("4K", "C"), ("2M", "C")]
    assert all(0.2 < each.gb_per_s < 2000 for each in found)


def without_compiler(bandwidth: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patched:
        patched.setattr(peers("build"), "compiler", lambda *names: None)
        return bandwidth.measure([1], cache, megabytes=64)


def test_a_failing_build_step_is_told_by_its_last_line(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "print('one'); print('no such target'); raise SystemExit(3)"]
    with pytest.raises(Missing, match="failed: no such target"):
        peers("build").run(program, tmp_path / "log")
    assert "one" in (tmp_path / "log").read_text()
    with pytest.raises(Missing, match="there is no cmake-of-another-world"):
        peers("build").run(["cmake-of-another-world"], tmp_path / "log")


def fake_build(folder: Path, kind: str = "Release") -> Path:
    (folder / "source" / "include").mkdir(parents=True)
    (folder / "source" / "include" / "llama.h").touch()
    cache = f"CMAKE_BUILD_TYPE:STRING={kind}\nGGML_NATIVE:BOOL=ON\nCMAKE_HOME_DIRECTORY:INTERNAL={folder / 'source'}\n"
    (folder / "build" / "bin").mkdir(parents=True)
    (folder / "build" / "CMakeCache.txt").write_text(cache, encoding="utf-8")
    return folder


def test_a_build_of_llama_cpp_must_be_a_shared_release_build(tmp_path: Path) -> None:
    check = peers("llama").check_build
    with pytest.raises(Missing, match=r"no CMakeCache\.txt"):
        check(tmp_path)
    with pytest.raises(Missing, match="type 'Debug'"):
        check(fake_build(tmp_path / "debug", "Debug"))
    good = fake_build(tmp_path / "good")
    with pytest.raises(Missing, match="no shared libllama"):
        check(good)
    (good / "build" / "bin" / "libllama.so").touch()
    assert check(good) == check(good / "build") == (good / "build").resolve()


def test_llama_cpp_is_configured_for_this_processor_or_for_all_of_it_but_amx(tmp_path: Path) -> None:
    native, without = (peers("llama").configure(tmp_path, tmp_path / "build", amx=amx) for amx in (True, False))
    assert "-DGGML_NATIVE=ON" in native
    assert {"-DGGML_NATIVE=OFF", "-DGGML_AVX512_VNNI=ON", "-DGGML_AMX_INT8=OFF"} <= set(without)
    assert "-DGGML_NATIVE=ON" not in without


def test_no_amx_is_refused_where_it_would_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = peers("llama")
    with pytest.raises(WrongCall, match="not one that is named"):
        llama.find(tmp_path, tmp_path, amx=False)
    (tmp_path / "cpuinfo").write_text("flags : avx2\n")
    monkeypatch.setattr(llama, "CPUINFO", tmp_path / "cpuinfo")
    with pytest.raises(WrongCall, match="no AMX"):
        llama.make(tmp_path, amx=False)


def test_the_source_is_unpacked_once_and_found(tmp_path: Path) -> None:
    archive = tmp_path / "llama_cpp_python-0.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        entry = tarfile.TarInfo("llama_cpp_python-0/vendor/llama.cpp/CMakeLists.txt")
        entry.size = 2
        packed.addfile(entry, io.BytesIO(b"ok"))
    source = peers("llama").unpack(archive, tmp_path)
    assert (source / "CMakeLists.txt").read_text() == "ok"
    archive.write_bytes(b"no longer needed")
    assert peers("llama").unpack(archive, tmp_path) == source


def test_engines_that_are_not_here_are_absent_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Path:
        raise Missing("there is no cmake on this machine")

    monkeypatch.setattr(peers("llama"), "find", fail)
    arguments = SimpleNamespace(cache=tmp_path, huge_pages=False, no_amx=False, llama=None, rwkv_cpp=None)
    llama, ours, *_, rwkv_cpp = script().find_kinds(arguments)
    assert [llama.name, ours.name, rwkv_cpp.name] == ["llama.cpp", "ours", "rwkv.cpp"]
    assert str(llama.reason) == "there is no cmake on this machine"
    assert "no checkout of rwkv.cpp" in str(rwkv_cpp.reason)
    arguments.rwkv_cpp = tmp_path
    with pytest.raises(Missing, match="holds no librwkv"):  # a slip of the pen, not an absent engine
        script().find_kinds(arguments)


def test_arguments_are_read_by_commas_and_refused_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    parser = script().parser()
    read = parser.parse_args(["--threads", "1,2,2", "--prompt", "64"])
    assert (read.size, read.threads, read.prompt, read.presets) == (["0.1b", "0.4b"], [1, 2], [64], ["int8", "int4"])
    for wrong in (["--size", "0.2b"], ["--threads", "0"], ["--presets", "int9"], ["--rounds", "many"]):
        with pytest.raises(SystemExit) as left:
            parser.parse_args(wrong)
        assert left.value.code == 2
    assert "did you mean 'int8'?" in capsys.readouterr().err


def test_the_results_file_holds_rows_and_ratios(tmp_path: Path) -> None:
    rows = [row("ours", "int8", [[0.1]]), row("llama.cpp", "Q8_0", [[0.2]])]
    main = script()
    document = main.Document(
        "2026",
        main.machine.describe(),
        0.0,
        {},
        {},
        "",
        [],
        [],
        rows,
        peers("stats").ratios(rows),
        [],
    )
    main.save(document, tmp_path / "new" / "results.json", None)
    read = json.loads((tmp_path / "new" / "results.json").read_text())
    assert read["rows"][0]["samples"] == {"decode": [[0.1]]}
    assert read["ratios"][0]["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
