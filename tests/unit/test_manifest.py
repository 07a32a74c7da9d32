"""The manifest and the files it vouches for: whatever does not fit is refused by name, before it is opened."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runtimes
from runtimes import manifest
from runtimes.errors import BadArtifact, RwkvExportError
from runtimes.schema import to_plain
from tests.conftest import Exports

FROZEN = Path(__file__).parents[1] / "golden" / "manifests"
"""A manifest for each schema number since 0.1.0, every key of it in use. They are added to and never edited."""


@pytest.fixture
def artifact(exports: Exports, tmp_path: Path) -> Path:
    """A copy that may be altered."""
    return Path(shutil.copytree(exports("4", "torch"), tmp_path / "artifact"))


def rewrite(folder: Path, alter: Callable[[Any], None]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    alter(document)
    path.write_text(json.dumps(document))


def test_a_truncated_file_is_refused_with_both_sizes(artifact: Path) -> None:
    path = artifact / "decode.pt2"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(BadArtifact, match=rf"decode\.pt2 has {size - 1} bytes, the manifest says {size}"):
        runtimes.open_session(artifact)


def test_a_missing_file_is_named(artifact: Path) -> None:
    (artifact / "decode.pt2").unlink()
    with pytest.raises(BadArtifact, match=r"lacks decode\.pt2"):
        runtimes.open_session(artifact)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"schema": 1}', "\udcff"])
def test_a_truncated_manifest_is_refused(artifact: Path, text: str) -> None:
    (artifact / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadArtifact, match=r"manifest\.json: "):
        runtimes.open_session(artifact)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "", "C:\\x", "a\\..\\..\\x", "c:x"])
def test_a_path_that_leaves_the_folder_is_refused(artifact: Path, name: str) -> None:
    rewrite(artifact, lambda document: document["files"].append({"path": name, "bytes": 1, "sha256": "0" * 64}))
    with pytest.raises(BadArtifact, match="leaves the artifact folder"):
        runtimes.open_session(artifact)


def set_graph(document: Any, name: str) -> None:
    document["graphs"][0]["file"] = name


def set_state(document: Any, name: str) -> None:
    document["initial_state"] = name


def set_tokenizer(document: Any, name: str) -> None:
    document["tokenizer"] = {"kind": "world", "file": name}


def set_compiled(document: Any, name: str) -> None:
    document["graphs"][0]["compiled"] = name


def set_then(document: Any, name: str) -> None:
    document["graphs"][0]["then"] = ["decode.pt2", name]


def set_table(document: Any, name: str) -> None:
    document["graphs"][0]["lookup"] = {"file": name, "width": 96}


@pytest.mark.parametrize("name", ["../artifact/decode.pt2", "unlisted.pt2", "", "/etc/passwd"])
@pytest.mark.parametrize("place", [set_graph, set_state, set_tokenizer, set_compiled, set_then, set_table])
def test_a_file_that_is_not_vouched_for_is_never_opened(
    artifact: Path, place: Callable[[Any, str], None], name: str
) -> None:
    shutil.copy(artifact / "decode.pt2", artifact / "unlisted.pt2")
    rewrite(artifact, lambda document: place(document, name))
    with pytest.raises(BadArtifact, match=r"manifest\.json"):
        runtimes.open_session(artifact)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda d: d.update(extra=1), "unknown key extra"),
        (lambda d: d["graphs"][0].update(extra=1), r"unknown key graphs\[0\]\.extra"),
        (lambda d: d["model"].pop("vocab"), r"missing key model\.vocab"),
        (lambda d: d["model"].update(vocab="101"), r"model\.vocab is str '101', expected int"),
        (lambda d: d["model"].update(vocab=True), r"model\.vocab is bool True, expected int"),
        (lambda d: d["state"][1]["shape"].append(None), r"state\[1\]\.shape\[2\] is NoneType None, expected int"),
        (lambda d: d["state"][0].update(dtype="int8"), "state .* has type 'int8', expected float32 or float16"),
        (lambda d: d.update(schema=2), "schema is 2, this version reads 1"),
        (lambda d: d.update(schema="1"), "schema is '1', this version reads 1"),
        (lambda d: d.pop("schema"), "schema is None, this version reads 1"),
    ],
)
def test_a_manifest_of_another_schema_is_refused_by_the_place_that_does_not_fit(
    artifact: Path, alter: Callable[[Any], object], message: str
) -> None:
    rewrite(artifact, alter)  # type: ignore[arg-type]
    with pytest.raises(BadArtifact, match=message):
        runtimes.open_session(artifact)


def test_only_the_folder_s_own_manifest_is_left_out_of_its_list(tmp_path: Path) -> None:
    for name in ("manifest.json", "model.mlpackage/manifest.json", "a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = {file.path: file.sha256 for file in manifest.list_files(tmp_path)}
    names = ("a", "model.mlpackage/manifest.json")
    assert found == {name: hashlib.sha256(name.encode()).hexdigest() for name in names}


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_manifest_holds_reading_it_works_or_refuses(
    exports: Exports, tmp_path: Path, data: st.DataObject
) -> None:
    text = (exports("4", "torch") / "manifest.json").read_text()
    document = json.loads(text)
    node, steps = document, data.draw(st.integers(1, 3))
    for depth in range(steps):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if depth + 1 == steps or not isinstance(node[key], dict | list) or not node[key]:
            node[key] = data.draw(anything)
            break
        node = node[key]
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    try:
        read = manifest.read(tmp_path)
    except RwkvExportError as error:
        assert isinstance(error, BadArtifact)
    else:
        manifest.write(read, tmp_path)
        assert manifest.read(tmp_path) == read or "NaN" in (tmp_path / "manifest.json").read_text()


def cut(new: Any, old: Any) -> Any:
    """The new document without the keys that the old one does not have."""
    if isinstance(old, dict):
        return {key: cut(new[key], old[key]) for key in old}
    return [cut(*pair) for pair in zip(new, old, strict=True)] if isinstance(old, list) else new


@pytest.mark.parametrize("number", range(1, manifest.SCHEMA + 1))
def test_a_manifest_of_every_schema_since_the_first_release_is_read_key_for_key(number: int) -> None:
    document = json.loads((FROZEN / str(number) / "manifest.json").read_text(encoding="utf-8"))
    read = to_plain(manifest.read(FROZEN / str(number)))
    assert document["schema"] == number
    assert cut(read, document) == document


def test_a_key_is_not_added_to_a_frozen_schema() -> None:
    folder = FROZEN / str(manifest.SCHEMA)
    document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert to_plain(manifest.read(folder)) == document, (
        "raise manifest.SCHEMA, and add a folder to tests/golden/manifests"
    )


def test_programs_without_python_read_the_same_schema() -> None:
    header = Path(runtimes.__file__).parent / "agent" / "manifest.h"
    assert f" SCHEMA = {manifest.SCHEMA};" in header.read_text(encoding="utf-8")
