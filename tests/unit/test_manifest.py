"""The manifest and the files it vouches for: whatever does not fit is refused by name, before it is opened."""

from __future__ import annotations

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
from tests.conftest import Exports


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


@pytest.mark.parametrize("name", ["../artifact/decode.pt2", "unlisted.pt2", "", "/etc/passwd"])
@pytest.mark.parametrize("place", [set_graph, set_state, set_tokenizer])
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
