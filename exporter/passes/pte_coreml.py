"""Replaces what is random in the Core ML models of an ExecuTorch program, each byte in its place; it knows no graph."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable
from pathlib import Path

from runtimes.mil import from_pte
from runtimes.pte.program import Program


def make_reproducible(path: Path, methods: Iterable[str]) -> None:
    """Rewrite a program whose methods are one Core ML model each, so that equal exports give equal bytes.

    Devices keep compiled models by their identifier: the new one is a digest of the model, so that no two share one.
    """
    program = Program(path)
    models = {from_pte.call(program, method).data for method in methods}
    content = path.read_bytes()
    for model in models:
        fixed, identifier = _with_fixed_order(model), _identifier(model)
        digest = hashlib.sha256(fixed.replace(identifier, b"")).hexdigest()
        new = str(uuid.uuid5(uuid.NAMESPACE_OID, digest)).encode()
        content = content.replace(model, fixed).replace(identifier, new)
    path.write_bytes(content)


def _identifier(model: bytes) -> bytes:
    """The random part of the model's name, the text of a UUID."""
    metadata = json.loads(bytes(from_pte.files(model)["metadata.json"]))
    return str(metadata["identifier"]).removeprefix("executorch_").encode()


def _with_fixed_order(model: bytes) -> bytes:
    """The file system with the package's own identifiers and the order of its model's maps made canonical."""
    changed = bytearray(model)
    for name, content in from_pte.files(model).items():
        fixed = _canonical(name, bytes(content))
        start = model.index(content)
        changed[start : start + len(fixed)] = fixed
    return bytes(changed)


def _canonical(name: str, content: bytes) -> bytes:
    """One file of a file system, of the same size."""
    if name.endswith("Manifest.json"):
        return _listing(content)
    if name.endswith(".mlmodel"):
        from coremltools.proto import Model_pb2

        spec = Model_pb2.Model()
        spec.ParseFromString(content)
        ordered: bytes = spec.SerializeToString(deterministic=True)
        return ordered
    return content


def _listing(content: bytes) -> bytes:
    """A package's manifest with identifiers derived from the paths."""
    document = json.loads(content)
    entries = sorted(document["itemInfoEntries"].items(), key=lambda item: item[1]["path"])
    fixed = {key: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])) for key, entry in entries}
    document["itemInfoEntries"] = {fixed[key]: entry for key, entry in entries}
    document["rootModelIdentifier"] = fixed[document["rootModelIdentifier"]]
    return (json.dumps(document, indent=4, sort_keys=True) + "\n").encode()
