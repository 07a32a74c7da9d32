"""One small artifact with a prefill graph, and sites that serve it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from exporter import export
from exporter.progress import silent
from tests.unit.small_exports import checkpoint
from tests.web.pages import FakePage
from validation.serve import ort_web, server
from validation.serve.app import Site
from validation.serve.prepare import prepare


class Served(NamedTuple):
    """A site, and where its page is."""

    site: Site
    url: str

    @property
    def page(self) -> FakePage:
        return FakePage(self.url)


Serve = Callable[..., Served]


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    torch.save(checkpoint("7", 1), folder / "7.pth")
    (made,) = export(folder / "7.pth", targets=["onnx-cpu"], options={"graphs": "each"}, prefill=[4], out=folder)
    return made


@pytest.fixture
def serve(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serves the small artifact, without onnxruntime-web, until the test is over."""
    monkeypatch.setattr(ort_web, "find", lambda folder, progress: {})
    with ExitStack() as stack:

        def served(*on: str, secure: bool = False, **changes: Any) -> Served:
            plan: dict[str, Any] = {
                "steps": 4,
                "seed": 0,
                "prompt": 6,
                "tokens": 10,
                "checkpoint": None,
                "runtime": None,
            }
            plan |= {"artifacts": [artifact], "out": tmp_path / "out", "on": on or ("web:wasm-1",)} | changes
            site = prepare(**plan, progress=silent)
            stack.callback(site.close)
            where = server.serving(site.app(), host=server.LOCAL, port=0, secure=secure)
            return Served(site, f"{stack.enter_context(where)}/{site.token}/")

        yield served
