"""The pytest plug-in: `pytest --rwkv-artifact out/...` adds a test for each artifact, place and check.

Every pytest of an environment loads this file, so that it imports nothing heavy before it is asked for artifacts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from validation.outcome import Results

MARK = "rwkv"
_found: pytest.StashKey[dict[tuple[Path, str, bool], Results]] = pytest.StashKey()


class Unproven(Exception):
    """A check did not pass; the message is all there is to say."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, all of them beginning with --rwkv."""
    group = parser.getgroup("rwkv-export", "RWKV artifacts against their checkpoints and a baseline")
    add = group.addoption
    add("--rwkv-artifact", action="append", default=[], metavar="FOLDER", help="artifact to check; repeatable")
    add("--rwkv-on", action="append", default=[], metavar="PLACE", help="where to run it, such as ort:cpu; repeatable")
    add("--rwkv-baseline", type=Path, metavar="FILE", help="results of `rwkv-export bench` to be as fast as")
    add("--rwkv-slower", type=float, default=1.10, metavar="RATIO", help="times the baseline's median that is allowed")


def pytest_configure(config: pytest.Config) -> None:
    """The marker that selects these tests."""
    config.addinivalue_line("markers", f"{MARK}: checks of RWKV artifacts (rwkv-export)")
    config.stash[_found] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the checks before -k and -m choose; raises UsageError for folders that are no artifacts."""
    folders = [Path(folder) for folder in config.getoption("--rwkv-artifact")]
    if not folders:
        return
    from runtimes.errors import RwkvExportError
    from validation.runner import list_cases, reads_text

    try:
        cases = list_cases(folders, config.getoption("--rwkv-on"))
    except RwkvExportError as error:
        raise pytest.UsageError(f"{error.message} ({error.hint})" if error.hint else error.message) from error
    timed = config.getoption("--rwkv-baseline") is not None
    for case in cases:
        wanted = {"parity": True, "quality": reads_text(case), "latency": timed}
        node = Path(os.path.relpath(case.folder, config.rootpath)).as_posix()
        parent = Folder.from_parent(session, name=case.folder.name, nodeid=node)
        items += [
            Check.from_parent(parent, name=f"{case.place} {check}", folder=case.folder, place=case.place, check=check)
            for check, asked in wanted.items()
            if asked
        ]


class Folder(pytest.Collector):
    """An artifact's folder, under whose name its checks stand."""

    def collect(self) -> list[pytest.Item]:
        """Nothing: its checks are added beside the tests of files."""
        return []


class Check(pytest.Item):
    """One check of one artifact in one place."""

    def __init__(self, *, folder: Path, place: str, check: str, **others: Any) -> None:
        super().__init__(**others)
        self.folder, self.place, self.check = folder, place, check
        self.add_marker(MARK)
        self.add_marker(pytest.mark.filterwarnings("ignore"))  # toolchains warn of themselves

    def runtest(self) -> None:
        """Raises Unproven; skips where this machine lacks what would run it."""
        (row,) = getattr(self._results(), self.check)
        if row.outcome == "pass":
            return
        first, *more = row.reasons or ("no reason was recorded",)
        if row.outcome in ("missing", "compiled") and not row.identity.observed:
            pytest.skip(f"{row.outcome}: {first}")
        raise Unproven("\n".join((f"{self.folder.name} on {self.place}: {first}", *(f"  {reason}" for reason in more))))

    def _results(self) -> Results:
        """What the gate says of this artifact in this place; parity and quality are of one run of it."""
        from validation.gate import gate

        known, timed = self.config.stash[_found], self.check == "latency"
        key = (self.folder, self.place, timed)
        if key not in known:
            option = self.config.getoption
            fail_on = f"latency:{option('--rwkv-slower'):f}x" if timed else "parity"
            baseline = option("--rwkv-baseline") if timed else None
            known[key] = gate([self.folder], on=[self.place], fail_on=fail_on, baseline=baseline)
        return known[key]

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The sentences alone, without a traceback."""
        from runtimes.errors import RwkvExportError

        error = excinfo.value
        if isinstance(error, RwkvExportError) and error.hint:
            return f"{error.message} ({error.hint})"
        if isinstance(error, Unproven | RwkvExportError):
            return str(error)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """What stands above a failure."""
        return self.folder, None, f"{self.folder.name} on {self.place}: {self.check}"
