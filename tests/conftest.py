"""Small random models and their artifacts, each exported once a run; tests read them and never change them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from tests.models import random_checkpoint

AWKWARD = {"layers": 2, "width": 96, "head_size": 32, "vocab": 101, "ffn": 232}  # 3 heads; nothing a power of two


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


class Exports:
    """Exports `AWKWARD` models on demand and keeps the folders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[object, ...], Path] = {}

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
        key = (version, target, precision, *sorted(complete.items()), *sorted(prefill))
        if key not in self._made:
            (self._made[key],) = exporter.export(
                self.checkpoint(version),
                targets=[target],
                precision=precision,
                out=self._folder / str(len(self._made)),
                options=options,
                prefill=prefill,
            )
        return self._made[key]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))
