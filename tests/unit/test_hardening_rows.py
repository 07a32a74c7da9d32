"""Rows of `validate` and `bench` outlive whatever ends the run: kill -9, a full disk, a second run at the same file."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from runtimes.errors import WrongCall
from rwkv_export.main import run
from tests.cli.conftest import latency, parity, results
from tests.conftest import Exports
from tests.unit.test_atomic import mounted, read_only
from validation import outcome
from validation.outcome import Parity
from validation.rows import Journal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ROWS = [parity("a"), latency("b", 1.0), parity("c")]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "r.json"


def stopped(target: Path, count: int = 3) -> Path:
    """What a run leaves that was killed after so many rows."""
    journal = Journal(target)
    for row in ROWS[:count]:
        journal.keep(row)
    journal._stream.close()
    return journal.path


def test_each_row_is_there_before_the_next_one(target: Path) -> None:
    journal = Journal(target)
    for count, row in enumerate(ROWS, 1):
        journal.keep(row)
        found = outcome.read(journal.path)
        assert len(found.parity) + len(found.latency) == count
    assert [row.identity.artifact for row in found.parity] == ["a", "c"]
    journal.end()
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_files_are_json_whatever_the_numbers(number: float, target: Path) -> None:
    odd = results(parity("a", error=number))
    outcome.write(odd, target)
    journal = Journal(target)
    journal.keep(odd.parity[0])
    for path in (target, journal.path):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
        (row,) = outcome.read(path).parity
        assert row.free
        assert [repr(error) for error in row.free.max_abs] == [repr(number)] * 4
    journal.end()


def test_files_of_before_that_had_bare_numbers_are_read(target: Path) -> None:
    odd = results(parity("a", error=math.inf))
    outcome.write(odd, target)
    target.write_text(target.read_text(encoding="utf-8").replace('"Infinity"', "Infinity"), encoding="utf-8")
    assert outcome.read(target) == odd


@pytest.mark.parametrize("torn", [1, 7, 100])
def test_a_torn_last_line_costs_that_row_alone(target: Path, torn: int) -> None:
    path = stopped(target)
    os.truncate(path, path.stat().st_size - torn)
    found = outcome.read(path)
    assert (len(found.parity), len(found.latency)) == (1, 1)


def test_a_row_that_does_not_fit_is_not_there_in_part(target: Path) -> None:
    class Full:
        """Takes half of a line, then nothing."""

        def __init__(self, stream: IO[bytes]) -> None:
            self.stream, self.tell = stream, stream.tell

        def write(self, line: bytes) -> int:
            if self.tell() > size:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.stream.write(line[: len(line) // 2])

    journal = Journal(target)
    journal.keep(ROWS[0])
    before = journal.path.read_bytes()
    size, journal._stream = len(before), Full(journal._stream)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left"):
        journal.keep(ROWS[1])
    assert journal.path.read_bytes() == before


def test_a_line_that_was_altered_is_named(target: Path) -> None:
    path = stopped(target)
    path.write_text(path.read_text().replace('"steps"', '"stops"', 1))
    with pytest.raises(WrongCall, match=r"r\.json\.jsonl is not a results file: unknown key parity\[0\]\.stops"):
        outcome.read(path)


def test_the_next_run_sets_a_stopped_ones_rows_aside(target: Path) -> None:
    first, second = stopped(target, 1).read_bytes(), None
    for number in (1, 2):
        journal = Journal(target)
        assert journal.stopped == target.with_name(f"r.json.stopped-{number}.jsonl")
        journal.keep(ROWS[1])
        second = journal.path.read_bytes()
        journal._stream.close()
    assert target.with_name("r.json.stopped-1.jsonl").read_bytes() == first
    assert len(outcome.read(target.with_name("r.json.stopped-2.jsonl")).latency) == 1
    assert second


def test_a_run_that_writes_the_same_results_is_not_disturbed(target: Path) -> None:
    journal = Journal(target)
    with pytest.raises(WrongCall, match=r"another run is writing \S*r\.json\.jsonl"):
        Journal(target)
    journal.keep(ROWS[0])
    assert len(outcome.read(journal.path).parity) == 1
    journal.end()


def test_commands_read_the_rows_of_a_stopped_run(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = str(stopped(target))
    assert run(["compare", rows, rows]) == 0
    assert "the same" in capsys.readouterr().out


def test_a_document_written_while_rows_are_kept_has_the_same_rows(target: Path) -> None:
    outcome.write(results(*ROWS), target)
    whole, kept = outcome.read(target), outcome.read(stopped(target))
    assert (kept.parity, kept.latency) == (whole.parity, whole.latency)
    assert all(isinstance(row, Parity) for row in kept.parity)


def test_bench_killed_at_any_moment_loses_no_finished_row(exports: Exports, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tests" / "unit" / "crashes_bench.py", exports("4", "torch"), tmp_path / "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RWKV_EXPORT_THREADS": "1"}
    done = subprocess.run([*command, "--moments", "4"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *crashes, last = map(json.loads, done.stdout.splitlines())
    assert sum(crash["killed"] for crash in crashes) >= 2
    seen = 0
    for crash in crashes:
        left = dict(crash["left"])
        whole, rows = left.pop("r.json", None), left.pop("r.json.jsonl", 0)
        assert whole in (crash["was"], 2), crash
        assert rows in (0, 1, 2), crash
        assert all(0 < kept <= 2 for kept in left.values()), crash
        assert len(left) >= seen, "rows of an earlier run are gone"
        seen = len(left)
    assert last["again"]
    assert last["left"]["r.json"] == 2
    assert "r.json.jsonl" not in last["left"]


linux = pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")


def bench(artifact: Path, target: Path) -> int:
    return run(["bench", str(artifact), "--prompt", "1", "--tokens", "1", "-q", "--json", str(target)])


@linux
@pytest.mark.parametrize("room", [0, 2])
def test_bench_on_a_full_disk_says_so_and_keeps_the_rows_that_fit(
    exports: Exports, tmp_path: Path, capsys: pytest.CaptureFixture[str], room: int
) -> None:
    with mounted(tmp_path / "disk", "size=16k") as disk:
        (disk / "others").write_bytes(bytes((4 - room) * 4096))
        if room:
            (disk / "r.json").write_text("older")
        assert bench(exports("4", "torch"), disk / "r.json") == 3
        printed = capsys.readouterr()
        assert printed.err.count("error: ") == 1
        assert f"disk full while writing {disk}" in printed.err
        assert {path.name for path in disk.iterdir()} == {"others", *(["r.json", "r.json.jsonl"] if room else [])}
        if room:
            assert (disk / "r.json").read_text() == "older"
            assert len(outcome.read(disk / "r.json.jsonl").latency) == 1


@linux
def test_other_commands_leave_nothing_half_written_on_a_full_disk(
    exports: Exports, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome.write(results(*ROWS), tmp_path / "r.json")
    commands = {
        "report": ("report", tmp_path / "r.json", "-o"),
        "synth .pth": ("synth", "--layers", "2", "--width", "64", "-q", "-o"),
        "synth .safetensors": ("synth", "--layers", "2", "--width", "64", "-q", "-o"),
        "trace": ("trace", exports.checkpoint("4"), "--tokens", "16", "-q", "-o"),
    }
    with mounted(tmp_path / "disk", "size=12k") as disk:
        (disk / "others").write_bytes(bytes(4096))
        for name, arguments in commands.items():
            out = disk / f"out{'.safetensors' if name == 'synth .safetensors' else '.pth'}"
            assert run([*map(str, arguments), str(out)]) == 3, name
            said = capsys.readouterr().err
            assert said.count("error: ") == 1, name
            assert "is full" in said or "disk full" in said or "No space left" in said, name
            assert [path.name for path in disk.iterdir()] == ["others"], name


def test_a_read_only_folder_is_refused_before_the_work(
    exports: Exports, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with read_only(tmp_path / "closed") as closed:
        assert bench(exports("4", "torch"), closed / "r.json") == 2
        assert run(["report", str(tmp_path / "closed"), "-o", str(closed / "r.html")]) == 2
    assert "is not writable" in capsys.readouterr().err
