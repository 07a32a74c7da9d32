"""A tiny model exported once for each format, and copies of it that something was changed in."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper

from exporter import export
from runtimes import manifest
from runtimes.schema import to_plain
from tests.models import random_checkpoint
from validation.localise import localise, reference
from validation.localise.findings import Found

MLMODEL = Path("model.mlpackage/Data/com.apple.CoreML/model.mlmodel")
MLWEIGHTS = Path("model.mlpackage/Data/com.apple.CoreML/weights/weight.bin")


def checkpoint(path: Path) -> Path:
    """Two layers; the last has squares beyond float16, decays next to one, and a head that nothing is received by."""
    weights = random_checkpoint("7", layers=2, width=64, head_size=32, vocab=65, ffn=96, seed=3)
    weights["blocks.1.ffn.key.weight"] *= 400
    weights["blocks.1.ffn.value.weight"] /= 400**2
    weights["blocks.1.att.w0"] -= 6
    weights["blocks.1.att.receptance.weight"][:32] = 0
    torch.save(weights, path)
    return path


def exported(folder: Path, target: str, **options: Any) -> Path:
    (artifact,) = export(checkpoint(folder / "tiny.pth"), targets=[target], out=folder, **options)
    return artifact


def trace_once(patch: pytest.MonkeyPatch) -> None:
    """The step of one checkpoint is traced once for each spelling: tracing takes longer than all else together."""
    plain, kept = reference.trace, {}

    def trace(model: Any, spelling: Any, *rest: Any) -> Any:
        key = (model.checkpoint.sha256(), spelling)
        if key not in kept:
            kept[key] = plain(model, spelling, *rest)
        return kept[key]

    patch.setattr(reference, "trace", trace)


def found(artifact: Path, on: str | None = None) -> Found:
    return localise(artifact, on=on, checkpoint=artifact.parent / "tiny.pth", tokens=2)


def listed_again(folder: Path) -> None:
    """The manifest as if the folder had been exported as it now is."""
    document = json.loads((folder / manifest.FILE_NAME).read_text())
    document["files"] = [to_plain(file) for file in manifest.list_files(folder)]
    (folder / manifest.FILE_NAME).write_text(json.dumps(document))


def changed(source: Path, name: str) -> Path:
    """A copy beside the checkpoint."""
    return Path(shutil.copytree(source, source.parent / name))


class OnnxGraph:
    """A graph file that is changed."""

    def __init__(self, folder: Path) -> None:
        (self.path,) = folder.glob("*.onnx")
        self.model = onnx.load(str(self.path), load_external_data=False)
        self.nodes = list(self.model.graph.node)

    def save(self) -> None:
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        self.path.write_bytes(self.model.SerializeToString())
        listed_again(self.path.parent)

    def node(self, name: str) -> Any:
        """By its name, or by a value it gives."""
        return next(node for node in self.nodes if name in (node.name, *node.output))

    def read_instead(self, old: str, new: str) -> None:
        for node in self.nodes:
            node.input[:] = [new if name == old else name for name in node.input]

    def before(self, user: str, kind: str, value: str, **attributes: Any) -> str:
        """Put a node called "planted" between a value and one that reads it."""
        reader = self.node(user)
        reader.input[:] = ["planted" if name == value else name for name in reader.input]
        self.nodes.insert(
            self.nodes.index(reader), helper.make_node(kind, [value], ["planted"], name="planted", **attributes)
        )
        return "planted"

    def through(self, name: str, element: int) -> None:
        """What a node gives is rounded to another type and back."""
        node = self.node(name)
        (value,) = node.output
        node.output[0] = "wide"
        at = self.nodes.index(node) + 1
        self.nodes[at:at] = [
            helper.make_node("Cast", ["wide"], ["narrow"], to=element, name="planted"),
            helper.make_node("Cast", ["narrow"], [value], to=onnx.TensorProto.FLOAT, name="planted_back"),
        ]

    def stored(self, name: str) -> tuple[Path, dict[str, int]]:
        """The data file, and where in it a weight is."""
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        return self.path.parent / entries["location"], {key: int(entries[key]) for key in ("offset", "length")}

    def move(self, name: str, by: int) -> None:
        tensor = next(tensor for tensor in self.model.graph.initializer if tensor.name == name)
        for entry in tensor.external_data:
            if entry.key == "offset":
                entry.value = str(int(entry.value) + by)


Change = Callable[[OnnxGraph], None]


def flip(path: Path, start: int, count: int, *, size: int = 4) -> None:
    """Change the sign of so many numbers of `size` bytes."""
    data = bytearray(path.read_bytes())
    for number in range(count):
        data[start + size * (number + 1) - 1] ^= 0x80
    path.write_bytes(data)


@functools.cache
def mil_proto() -> Any:
    from coremltools_quiet import coremltools

    return coremltools.proto.Model_pb2.Model


class MilProgram:
    """A Core ML program in float16 that is changed."""

    suffix = "_cast_fp16"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = mil_proto().FromString((folder / MLMODEL).read_bytes())

    def save(self) -> None:
        (self.folder / MLMODEL).write_bytes(self.model.SerializeToString())
        listed_again(self.folder)

    @property
    def operations(self) -> Any:
        (function,) = self.model.mlProgram.functions.values()
        return function.block_specializations[function.opset].operations

    def operation(self, value: str) -> Any:
        names = (value, value + self.suffix)
        return next(each for each in self.operations if each.outputs[0].name in names)

    def stored(self, part: str) -> Any:
        """Where a weight is in the weight file."""
        constants = (each for each in self.operations if each.type == "const" and part in each.outputs[0].name)
        return next(constants).attributes["val"].blobFileValue

    def constant(self, value: str, parameter: str) -> Any:
        """The number that an operation has for a parameter."""
        bound = self.operation(value).inputs[parameter].arguments[0]
        constant = self.operation(bound.name).attributes["val"] if bound.name else bound.value
        return constant.immediateValue.tensor

    def read_instead(self, old: str, new: str) -> None:
        for each in self.operations:
            for argument in (argument for bound in each.inputs.values() for argument in bound.arguments):
                if argument.name == old + self.suffix:
                    argument.name = new
