"""Small random models and their artifacts, each exported once a run; tests read them and never change them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.models import random_checkpoint

AWKWARD = {"layers": 2, "width": 96, "head_size": 32, "vocab": 101, "ffn": 232}  # 3 heads; nothing a power of two

# A busy machine is no failure, and tests tell of the change alone: tests/fuzz is what looks for new inputs.
settings.register_profile("patient", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What exports remember goes to a folder of the test run, not to the user's."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@contextmanager
def untraced() -> Iterator[None]:
    """Without coverage, under which a toolchain written in Python takes twice as long."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


class Exports:
    """Exports `AWKWARD` models on demand and keeps the folders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[object, ...], Path] = {}
        self._traced: set[tuple[object, ...]] = set()

    def checkpoint(self, version: str) -> Path:
        """A random checkpoint of `version`."""
        path = self._folder / f"random-{version}.pth"
        if not path.exists():
            torch.save(random_checkpoint(version, **AWKWARD, seed=3), path)
        return path

    def __call__(
        self,
        version: str,
        target: str,
        *,
        precision: str = "fp32",
        options: Mapping[str, str] | None = None,
        prefill: Sequence[int] = (),
    ) -> Path:
        """The artifact folder of these choices."""
        import exporter
        from exporter import registry

        complete = registry.choose_options([registry.targets()[target]], options or {})[target]
        choices = (target, precision, *sorted(complete.items()), *sorted(prefill))
        if (version, choices) not in self._made:
            with untraced() if choices in self._traced else nullcontext():
                (folder,) = exporter.export(
                    self.checkpoint(version),
                    targets=[target],
                    precision=precision,
                    out=self._folder / str(len(self._made)),
                    options=options,
                    prefill=prefill,
                )
            self._traced.add(choices)
            self._made[version, choices] = folder
        return self._made[version, choices]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))
