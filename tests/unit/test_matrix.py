"""A plan's cells: which there are, that none is lost or doubled when workers die, and that a second run goes on."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matrix_cells
import pytest
from filelock import FileLock, Timeout
from matrix_cells import cell
from small_exports import exported

from runtimes.errors import Missing, WrongCall
from runtimes.schema import to_plain
from validation import outcome
from validation.matrix import cell as cells
from validation.matrix import plan as plans
from validation.matrix import sweep as sweeps
from validation.matrix.cluster import run_on_cluster
from validation.matrix.local import run_here
from validation.outcome import Outcome

pytestmark = pytest.mark.slow

PLAN = """
artifacts = ["out/*"]
[[device]]
name = "laptop"
on = ["ort:cpu", "pte:cpu"]
[work]
steps = 8
prompt = 4
tokens = 5
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX artifact of one small layer."""
    return exported("7", "onnx-cpu", tmp_path_factory.mktemp("matrix"))


@pytest.fixture
def plan(artifact: Path, tmp_path: Path) -> Path:
    """A plan beside a folder `out` with the artifact."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / artifact.name).symlink_to(artifact)
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_cells_are_the_pairs_that_can_be(plan: Path) -> None:
    (only,) = plans.read(plan)
    assert (only.device.name, only.place, only.work.tokens) == ("laptop", "ort:cpu", 5)
    assert only.identity.target == "onnx-cpu" and only.identity.observed == ""


def test_a_folder_that_goes_while_it_is_looked_through_is_told(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Path, pattern: str) -> Iterator[Path]:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/7/task/8")

    monkeypatch.setattr(Path, "glob", gone)
    with pytest.raises(WrongCall, match=r"^cannot look for 'out/\*': No such file or directory: /proc/7/task/8$"):
        plans.read(plan)


def test_a_cell_has_another_key_when_its_artifact_or_its_work_changes(plan: Path) -> None:
    (before,) = plans.read(plan)
    plan.write_text(PLAN.replace("tokens = 5", "tokens = 6"))
    (after,) = plans.read(plan)
    assert before.key != after.key
    assert plans.read(plan)[0].key == after.key


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"laptop"', "7", "device[0].name is int"),
        ("tokens = 5", "tokens = 0", "must be positive"),
        ("steps = 8", "steps = 3", "3 steps are too few"),
        ("tokens = 5", "validate = false\nbench = false", "neither"),
        ('"out/*"', '"nowhere/*"', "no folder matches 'nowhere/*'"),
        ('["ort:cpu", "pte:cpu"]', '["pte:cpu"]', "has nothing to run"),
        ('["ort:cpu", "pte:cpu"]', '["ort:gnu"]', "no device 'gnu'"),
        ("[work]", '[[device]]\nname = "laptop"\n[work]', "several devices called 'laptop'"),
        ("[work]", "[word]", "unknown key word"),
        ("[work]", "[work", "is not a plan"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_what_is_wrong(plan: Path, old: str, new: str, told: str) -> None:
    plan.write_text(PLAN.replace(old, new))
    with pytest.raises(WrongCall, match=told.replace("[", r"\[").replace("*", r"\*")):
        plans.read(plan)


def test_a_sweep_keeps_what_ran_and_runs_again_what_could_not(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def missing_at_first(cell: plans.Cell) -> str:
        ran.append(cell.key)
        kind = (Outcome.MISSING, Outcome.ERROR, Outcome.FAIL)[len(ran) - 1]
        return json.dumps(to_plain(cells.unrun(cell, kind, "for a reason")))

    monkeypatch.setattr(sweeps, "run_here", lambda due, run, retries: [(c, missing_at_first(c)) for c in due])
    found = [sweeps.sweep(plan, tmp_path / "lab") for _ in range(4)]
    kinds = [results.parity[0].outcome for (results,) in found]
    assert kinds == [Outcome.MISSING, Outcome.ERROR, Outcome.FAIL, Outcome.FAIL]
    assert len(ran) == 3, "a failed comparison is a result and is kept"
    assert len(list((tmp_path / "lab").iterdir())) == 1
    ran.pop()
    sweeps.sweep(plan, tmp_path / "lab", again=True)
    assert len(ran) == 3


def test_results_come_in_the_plan_s_order_whoever_ends_first(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backwards(due: list[plans.Cell], run: object, retries: int) -> list[tuple[plans.Cell, str]]:
        return [(c, json.dumps(to_plain(cells.unrun(c, Outcome.FAIL, "why")))) for c in reversed(due)]

    monkeypatch.setattr(sweeps, "run_here", backwards)
    plan.write_text(PLAN + '[[device]]\nname = "phone"\n')
    assert [found.machine.name for found in sweeps.sweep(plan, tmp_path / "lab")] == ["laptop", "phone"]


def test_no_other_cell_runs_on_a_machine_meanwhile(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(here: plans.Cell) -> outcome.Results:
        with pytest.raises(Timeout), FileLock(tmp_path / "lock", timeout=0):
            pass
        return cells.unrun(here, Outcome.FAIL, "why")

    monkeypatch.setattr(cells, "TURNSTILE", tmp_path / "lock")
    monkeypatch.setattr(cells, "_work", work)
    cells.run(plans.read(plan)[0])


def test_a_cell_that_cannot_be_understood_or_raised_is_an_error_row(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for result, told in (('{"schema": 1}', "another version"), (ValueError("no"), "ValueError: no")):
        monkeypatch.setattr(sweeps, "run_here", lambda due, run, retries, result=result: [(c, result) for c in due])
        (found,) = sweeps.sweep(plan, tmp_path / "lab")
        assert found.parity[0].outcome is Outcome.ERROR and told in found.parity[0].reasons[0]


def test_a_cell_times_and_validates_under_the_name_of_its_device(plan: Path, tmp_path: Path) -> None:
    """In a process of its own, by what a sweep of this machine really does."""
    (found,) = sweeps.sweep(plan, tmp_path / "lab", retries=0)
    (timed,), (proven,) = found.latency, found.parity
    assert found.machine.name == "laptop"
    assert timed.outcome is Outcome.PASS, timed.reasons
    assert timed.decode and len(timed.decode.seconds) == 5
    assert (proven.outcome, proven.steps) == (Outcome.PASS, 8)
    (here,) = plans.read(plan)
    assert cells.settled(found, here)
    assert not cells.settled(found, plans.Cell(**{**vars(here), "digest": "0" * 64})), "results of another artifact"
    assert not cells.settled(replace(found, parity=(replace(proven, steps=3),)), here), "a pass that cannot be one"


def test_an_artifact_that_a_worker_lacks_or_has_otherwise_is_missing(plan: Path) -> None:
    (here,) = plans.read(plan)
    gone = json.loads(cells.run(plans.Cell(**{**vars(here), "folder": Path("/nowhere")})))
    other = json.loads(cells.run(plans.Cell(**{**vars(here), "digest": "0" * 64})))
    assert "is not on this machine" in gone["parity"][0]["reasons"][0]
    assert "another artifact than the plan's" in other["latency"][0]["reasons"][0]
    assert {row["outcome"] for row in (*gone["parity"], *other["latency"])} == {"missing"}


def test_a_crash_costs_one_cell_one_try(tmp_path: Path) -> None:
    given = [cell(name, tmp_path) for name in ("deadly", "broken")]
    assert dict(run_here([given[0]], matrix_cells.run, retries=1)) == {given[0]: "deadly"}
    ((_, error),) = run_here([given[1]], matrix_cells.run, retries=1)
    assert isinstance(error, ValueError) and len(list(tmp_path.glob("broken.*"))) == 2


def test_one_document_a_machine(plan: Path) -> None:
    (here,) = plans.read(plan)
    one, two = (cells.unrun(here, Outcome.MISSING, why) for why in ("a", "b"))
    other = replace(two, machine=replace(two.machine, name="other"))
    merged = outcome.by_machine([one, other, two])
    assert [len(document.parity) for document in merged] == [2, 1]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three workers, of which each is one phone."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=2, resources={"phone": 1}, dashboard_address=None
    ) as made:
        yield made


def test_a_worker_that_dies_loses_no_cell_and_doubles_none(cluster: Any, tmp_path: Path) -> None:
    given = [cell(name, tmp_path) for name in ("deadly", *(f"quiet{index}" for index in range(7)))]
    found = list(run_on_cluster(given, matrix_cells.run, 0, scheduler=cluster.scheduler_address))
    assert sorted(done.key for done, _ in found) == sorted(each.key for each in given)
    assert all(text == done.folder.name for done, text in found)
    spans: dict[str, list[tuple[float, float]]] = {}
    for note in tmp_path.iterdir():
        worker, *times = note.read_text().split() or [""]
        if worker:
            spans.setdefault(worker, []).append((float(times[0]), float(times[1])))
    assert sum(map(len, spans.values())) == len(given), "one file a cell that came to its end"
    for each in map(sorted, spans.values()):
        assert all(end <= begin for (_, end), (begin, _) in pairwise(each)), "two timings at once"


def test_a_cell_that_no_worker_can_run_is_given_up(cluster: Any, tmp_path: Path) -> None:
    given = [cell("quiet", tmp_path, needs="tablet"), cell("broken", tmp_path)]
    found = dict(run_on_cluster(given, matrix_cells.run, 0, scheduler=cluster.scheduler_address, patience=1))
    assert isinstance(found[given[0]], Missing) and "'tablet'" in str(found[given[0]])
    assert isinstance(found[given[1]], ValueError)


def test_a_device_without_a_resource_and_a_scheduler_that_is_not_there_are_said(tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match="does not say what a worker needs"):
        list(run_on_cluster([cell("quiet", tmp_path, needs="")], matrix_cells.run, 0, scheduler="tcp://127.0.0.1:9"))
    with pytest.raises(Missing, match="no Dask scheduler answers at"):
        list(run_on_cluster([cell("quiet", tmp_path)], matrix_cells.run, 0, scheduler="tcp://127.0.0.1:9"))
