"""Core AI: versions through Apple's interpreter, the same bytes twice, what is shared, what is refused and how."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_exports as small
import torch

from exporter import export
from exporter.models.layers import Linear
from exporter.passes.coreai_weights import Projection
from exporter.targets import coreai as target
from runtimes import manifest, open_on
from runtimes.backends import coreai
from runtimes.contract import Artifact
from runtimes.errors import BadArtifact, Missing
from tests.models import VERSIONS, random_checkpoint
from tests.requirements import require

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DIFFERENT = [version for version in VERSIONS if version not in ("5.0", "5.1")]  # those are 5.2 with less
CHUNKS = (4, 1, 4, 1)
FP32, FP16 = 5e-5, 2e-2
FILE = "model.aimodel"

Exported = Callable[..., Path]


@pytest.fixture(autouse=True, scope="module")
def _required() -> None:
    require("coreai", target.missing() or coreai.missing("cpu"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Exports a small model of a version once for each precision and state."""
    made: dict[tuple[str, str, str], Path] = {}

    def get(version: str, precision: str = "fp32", state: str = "explicit") -> Path:
        key = version, precision, state
        if key not in made:
            folder = tmp_path_factory.mktemp("coreai")
            path = folder / f"{version}.pth"
            torch.save(small.checkpoint(version, 1), path)
            options = {"state": state}
            (made[key],) = export(
                path, targets=["coreai"], precision=precision, options=options, prefill=[CHUNKS[0]], out=folder
            )
        return made[key]

    return get


def changed(folder: Path, into: Path, change: Callable[[Path], None]) -> Artifact:
    """A copy of the artifact whose .aimodel is changed, as if its manifest had been written afterwards."""
    shutil.copytree(folder, into)
    change(into / FILE)
    return Artifact(into, manifest.read(into))


def programmed(data: bytes, asset: Path) -> None:
    """Another program, with the hash that it has."""
    (asset / "main.mlirb").write_bytes(data)
    (asset / "main.hash").write_bytes(hashlib.sha256(data).digest())


# Numbers


@pytest.mark.parametrize("version", DIFFERENT)
def test_the_step_and_prefill_agree_with_torch(exported: Exported, version: str) -> None:
    folder = exported(version)
    wanted = small.in_torch(folder)
    with closing(open_on(manifest.open_artifact(folder), "coreai:cpu")) as session:
        assert small.stepping(session, wanted) < FP32
        assert small.in_chunks(session, wanted, CHUNKS) < FP32
        placed = session.placement()
        assert (placed.requested, placed.observed, placed.evidence) == ("coreai:cpu", "coreai:cpu", "emulated")


def test_state_written_in_place_gives_what_explicit_state_gives(exported: Exported) -> None:
    folder = exported("7", "fp16", "held")
    assert all(tensor.input == tensor.output for tensor in manifest.read(folder).state)
    wanted = small.in_torch(folder)
    with closing(open_on(manifest.open_artifact(folder), "coreai:cpu")) as session:
        start = session.initial_state()
        first, second = session.step(3, start), session.step(3, start)  # the state is still what it was
        assert np.array_equal(first.logits, second.logits)
        assert 0 < small.stepping(session, wanted) < FP16
        assert 0 < small.in_chunks(session, wanted, CHUNKS) < FP16


@pytest.mark.parametrize(("precision", "bound"), [("int4", 2.0), ("lut4", 2.0)])
def test_compressed_weights_are_still_the_model(exported: Exported, precision: str, bound: float) -> None:
    folder = exported("7", precision)
    wanted = small.in_torch(folder)
    with closing(open_on(manifest.open_artifact(folder), "coreai:cpu")) as session:
        assert 1e-4 < small.stepping(session, wanted) < bound
    facts = manifest.read(folder).precision
    assert (facts.weights, facts.compute) == (precision, "float16")
    eight = {kept.tensors for kept in facts.kept if kept.dtype == precision[:3] + "8"}
    assert "head.weight" in eight


def test_a_projection_is_the_linear_it_replaces() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(12, 8, generator=generator), torch.randn(12, generator=generator)
    linear = Linear(torch.nn.Parameter(weight), torch.nn.Parameter(bias))
    for tokens in (1, 5):
        x = torch.randn(tokens, 8, generator=generator)
        assert torch.allclose(Projection(weight, bias)(x), linear(x), atol=1e-5)


# What is written


def test_functions_share_their_weights(tmp_path: Path) -> None:
    path = tmp_path / "4.pth"
    torch.save(random_checkpoint("4", layers=1, width=32, head_size=16, vocab=4096), path)
    (folder,) = export(path, targets=["coreai"], prefill=[2], out=tmp_path)
    document = manifest.read(folder)
    assert [graph.function for graph in document.graphs] == ["decode", "prefill2"]
    size = (folder / FILE / "main.mlirb").stat().st_size
    assert 4 * document.model.parameters < size < 1.2 * 4 * document.model.parameters


AGAIN = "import sys, exporter; exporter.export(sys.argv[1], targets=['coreai'], precision=sys.argv[2], prefill=[4])"


def test_the_same_inputs_give_the_same_bytes_without_dates_or_paths(exported: Exported, tmp_path: Path) -> None:
    folder = exported("7", "lut4")
    torch.save(small.checkpoint("7", 1), tmp_path / "7.pth")
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", AGAIN, "./7.pth", "lut4"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    one, other = (
        {p.name: p.read_bytes() for p in made.glob(f"{FILE}/*")} for made in (folder, tmp_path / "out" / folder.name)
    )
    assert list(one) and one == other
    assert json.loads(one["metadata.json"]).keys() == {"assetVersion", "producer"}
    for data in one.values():
        assert not [text for text in (str(ROOT), str(Path.home()), sys.prefix, ".py") if text.encode() in data]


def test_palettes_without_a_compiler_are_missing_before_anything_is_begun(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(array: object, k: int) -> None:
        raise RuntimeError("Ninja is required to load C++ extensions\n(pip install ninja to get it)")

    monkeypatch.setattr("coreai_opt.deps._kmeans1d.cluster", fail)
    with pytest.raises(Missing, match=r"^coreai-opt cannot compile its k-means: Ninja is required .* extensions$"):
        export(targets=["coreai"], precision="lut4", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The session


def test_a_session_serves_callers_inside_an_event_loop_and_leaves_no_folder(exported: Exported) -> None:
    def folders() -> set[Path]:
        return set(Path(tempfile.gettempdir()).glob("*.aimodelx"))

    async def stepped() -> float:
        before = folders()
        session = open_on(manifest.open_artifact(exported("7")), "coreai:cpu")
        assert folders() - before
        found = float(session.step(1, session.initial_state()).logits[0])
        session.close()
        assert not folders() - before
        return found

    assert np.isfinite(asyncio.run(stepped()))


@pytest.mark.skipif(platform.system() == "Darwin", reason="Core AI may have these devices here")
@pytest.mark.parametrize("device", ["gpu", "ane"])
def test_devices_of_a_mac_are_missing_elsewhere(device: str) -> None:
    assert "on macOS only" in str(coreai.missing(device))


# Damage


def cut_short(asset: Path) -> None:
    program = asset / "main.mlirb"
    program.write_bytes(program.read_bytes()[:-100])


def lacking(asset: Path) -> None:
    (asset / "main.mlirb").unlink()


def of_other_facts(asset: Path) -> None:
    (asset / "metadata.json").write_text("{")


def halved(asset: Path) -> None:
    data = (asset / "main.mlirb").read_bytes()
    programmed(data[: len(data) // 2], asset)


def nonsense(asset: Path) -> None:
    programmed(b"ML\xefR no program", asset)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_short, "does not match the hash in main.hash"),
        (lacking, "is not a whole .aimodel: .*No such file"),
        (of_other_facts, "Core AI cannot load .*not in the correct format"),
        (halved, "Core AI cannot load .*: its program cannot be read"),
        (nonsense, "Core AI cannot load .*: its program cannot be read"),
    ],
)
def test_a_damaged_model_is_refused_by_name(
    exported: Exported, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    with pytest.raises(BadArtifact, match=message):
        coreai.open_session(changed(exported("7"), tmp_path / "damaged", change), "cpu")


def of_function(document: manifest.Manifest) -> manifest.Manifest:
    return replace(document, graphs=(replace(document.graphs[0], function="decoed"),))


def of_size(document: manifest.Manifest) -> manifest.Manifest:
    return replace(document, graphs=(*document.graphs[:-1], replace(document.graphs[-1], tokens=5)))


def of_name(document: manifest.Manifest) -> manifest.Manifest:
    return replace(document, state=(replace(document.state[0], input="blocks.9.att.shift"), *document.state[1:]))


def of_type(document: manifest.Manifest) -> manifest.Manifest:
    return replace(document, state=(*document.state[:-1], replace(document.state[-1], dtype="float16")))


def of_output(document: manifest.Manifest) -> manifest.Manifest:
    return replace(document, graphs=tuple(replace(graph, output="logit") for graph in document.graphs))


LIES: Mapping[str, Callable[[manifest.Manifest], manifest.Manifest]] = {
    "has no function decoed": of_function,
    r"input tokens of model.aimodel is \('int32', \(4,\)\), the manifest says \('int32', \(5,\)\)": of_size,
    "input blocks.0.att.shift of model.aimodel is .*, the manifest says absent": of_name,
    r"blocks.0.ffn.shift of model.aimodel is \('float32'.*says \('float16'": of_type,
    "output logit of model.aimodel is absent": of_output,
}


@pytest.mark.parametrize("message", LIES)
def test_a_manifest_that_is_not_the_models_is_refused(exported: Exported, message: str) -> None:
    folder = exported("7")
    artifact = Artifact(folder, LIES[message](manifest.read(folder)))
    with pytest.raises(BadArtifact, match=message):
        coreai.open_session(artifact, "cpu")
