"""The coreml runtime on machines without Core ML: what it refuses, and that the refusal says why."""

from __future__ import annotations

import platform
from pathlib import Path

import mil_models
import pytest

from runtimes import manifest
from runtimes.backends import coreml
from runtimes.contract import Artifact
from runtimes.errors import BadArtifact

FILE = "model.mlpackage"


def artifact(folder: Path) -> Artifact:
    document = manifest.Manifest(
        schema=manifest.SCHEMA,
        model=manifest.Model("small", "0", 1, 16, 1, 16, mil_models.VOCAB, 1e-5, 0),
        source=manifest.Source("none", "none", 0, ""),
        target=manifest.Target("coreml", "coreml", "cpu", "fp32", "fp32"),
        precision=manifest.Precision("float32", "float32"),
        graphs=(manifest.Graph(1, FILE, "tokens", "int32", "logits"),),
        state=(),
        tokenizer=manifest.Tokenizer("none"),
        files=(),
        tools={},
    )
    return Artifact(folder, document)


def test_a_damaged_package_is_refused_by_name(tmp_path: Path) -> None:
    package = mil_models.save(tmp_path / FILE)
    next(package.rglob("*.mlmodel")).write_bytes(b"\xff not a model")
    with pytest.raises(BadArtifact, match=rf"Core ML cannot load .*{FILE}: "):
        coreml.open_session(artifact(tmp_path), "cpu")


@pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML loads the package here")
def test_a_model_that_was_read_but_not_compiled_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    mil_models.save(tmp_path / FILE)
    with pytest.raises(BadArtifact, match="not loaded or compiled with the Core ML Framework"):
        coreml.open_session(artifact(tmp_path), "cpu")
