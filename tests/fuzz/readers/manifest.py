"""manifest.json of an artifact, and the hashes of what it lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from runtimes import manifest
from runtimes.manifest import (
    Coverage,
    File,
    Graph,
    Kept,
    Lookup,
    Manifest,
    Model,
    Precision,
    Source,
    StateTensor,
    Target,
    Tokenizer,
)
from runtimes.schema import to_plain


def document(folder: Path) -> Manifest:
    """Of an artifact whose one file lies in `folder`."""
    (folder / "model.onnx").write_bytes(b"weights")
    coverage = Coverage({"XNNPACK": 1}, {"aten.mul": 3}, {}, 5, 0, 8, 0)
    return Manifest(
        schema=manifest.SCHEMA,
        model=Model("tiny", "7", 1, 4, 1, 4, 7, 64e-5, 100),
        source=Source("tiny.pth", "pth", 10, "0" * 64),
        target=Target("onnx-cpu", "ort", "cpu", "fp32", "fp32", {"state": "each"}, "ort:cpu"),
        precision=Precision("float32", "float32", (Kept("head", "float32", "small"),)),
        graphs=(
            Graph(1, "model.onnx", "tokens", "int64", "logits", coverage=coverage),
            Graph(4, "model.onnx", "tokens", "int64", "logits", "prefill", up_to=True, lookup=Lookup("model.onnx", 4)),
        ),
        state=(StateTensor("wkv", (1, 4, 4), "float32", ("head", "value", "key"), 0.0, "wkv", "wkv_out"),),
        tokenizer=Tokenizer("bytes"),
        files=(File("model.onnx", 7, manifest.sha256(folder / "model.onnx")),),
        tools={"torch": "2"},
    )


def seeds(folder: Path) -> Iterator[bytes]:
    yield json.dumps(to_plain(document(folder)), separators=(",", ":")).encode()


def read(data: bytes, folder: Path) -> None:
    (folder / manifest.FILE_NAME).write_bytes(data)
    manifest.open_artifact(folder)
