"""ExecuTorch programs show no values: faults planted in the exported step are found from the states they return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import localise_cases as cases
import pytest

from exporter.models import v7

pytestmark = pytest.mark.slow


def test_an_activation_left_out_within_a_delegate_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = v7.TimeMix.__init__

    def without_an_activation(self: Any, take: Any, layer: int, *rest: Any) -> None:
        plain(self, take, layer, *rest)
        if layer == 1:
            self.g.activation = None

    with monkeypatch.context() as planted:
        planted.setattr(v7.TimeMix, "__init__", without_an_activation)
        artifact = cases.exported(tmp_path, "executorch-xnnpack")
    found = cases.found(artifact)
    assert found.lost
    assert not found.whole
    assert found.first is not None and found.first.cause is not None
    assert (found.first.layer, found.first.cause.name) == ("blocks.1", "missing-operation"), found.sentence
    assert found.first.cause.detail.startswith("sigmoid")
    assert found.first.module == "blocks.1.att.g"
    assert found.first.tensor == "blocks.1.ffn.shift after the step"
    assert "blocks.1.att.g" in found.first.between
