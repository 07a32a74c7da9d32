"""Exporting as a whole: the same bytes every time, refusals that leave nothing behind, tuned states, the README."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runtimes
from exporter import export, reference_session
from runtimes import manifest
from runtimes.errors import BadArtifact, BadCheckpoint, RwkvExportError, WrongCall
from tests.conftest import AWKWARD, Exports
from tests.models import Dice, Tensors, random_checkpoint
from tests.oracle import Oracle, errors, trace_of
from validation import validate
from validation.outcome import Outcome
from validation.reference import Reference

ROOT = Path(__file__).parents[2]
TARGETS = ("torch", "onnx-cpu", "coreml", "executorch-xnnpack", "executorch-portable")
LAYERS, HEADS, SIZE = AWKWARD["layers"], AWKWARD["width"] // AWKWARD["head_size"], AWKWARD["head_size"]
TOKENS = np.random.default_rng(8).integers(0, AWKWARD["vocab"], 16).tolist()
BOUND = 1e-5  # of a tensor's largest value, fp32 against fp32
FAR = 1e-2


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved(weights: Tensors, path: Path) -> Path:
    torch.save(weights, path)
    return path


def random_weights(version: str) -> Tensors:
    """Those of `Exports.checkpoint`."""
    return random_checkpoint(version, **AWKWARD, seed=3)


# The same bytes


AGAIN = "import sys, exporter; exporter.export(sys.argv[1], targets=sys.argv[3:], out=sys.argv[2])"


@pytest.fixture(scope="module")
def again(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 7 on every target, from another process in another folder, with Python's sets in another order."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(exports.checkpoint("7"), elsewhere)
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", AGAIN, f"./{exports.checkpoint('7').name}", "out", *TARGETS]
    subprocess.run(command, cwd=elsewhere, env=environment, check=True, capture_output=True)
    return elsewhere / "out"


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_inputs_give_the_same_bytes(exports: Exports, again: Path, target: str) -> None:
    one, other = files(exports("7", target)), files(again / f"random-7.{target}.fp32")
    assert list(one) and set(one) == set(other)
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.parametrize("target", TARGETS)
def test_no_file_says_where_or_by_whom_it_was_made(exports: Exports, target: str) -> None:
    folder = exports("7", target)
    private = {str(ROOT), str(folder.parent), str(exports.checkpoint("7").parent), str(Path.home()), sys.prefix}
    for name, data in files(folder).items():
        assert [text for text in private if text.encode() in data] == [], name


def test_the_manifest_has_no_time_and_no_path(exports: Exports) -> None:
    text = (exports("7", "onnx-cpu") / "manifest.json").read_text()
    assert not re.search(r"20\d\d-\d\d|\d\d:\d\d", text)
    assert str(json.loads(text)["source"]["file"]) == "random-7.pth"


# The artifact's README


@pytest.mark.parametrize(
    ("target", "precision", "options", "prefill"),
    [
        *((target, "fp32", {}, ()) for target in TARGETS),
        ("onnx-cpu", "fp32", {"names": "rwkv-mobile"}, (2,)),
        ("coreml", "fp16", {"ios": "18", "state": "mlstate"}, ()),
    ],
)
def test_the_readme_names_every_graph_and_port(
    exports: Exports, target: str, precision: str, options: Mapping[str, str], prefill: tuple[int, ...]
) -> None:
    folder = exports("7", target, precision=precision, options=options, prefill=prefill)
    text, document = (folder / "README.md").read_text(), manifest.read(folder)
    for graph in document.graphs:
        assert {f"`{graph.file}`", f"`{graph.input}` {graph.input_dtype}", f"`{graph.output}`"} <= spans(text)
    for tensor in document.state:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {tensor.name} |")]
        shape = " x ".join(map(str, tensor.shape))
        assert [cell.strip() for cell in row.strip("|").split("|")] == [
            tensor.name,
            ", ".join(tensor.axes),
            shape,
            tensor.dtype,
            str(tensor.fill),
            f"`{tensor.input}`",
            f"`{tensor.output}`",
        ]
    assert "{" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # no placeholder was left


def spans(text: str) -> set[str]:
    """Cells of the README's tables, whole and split at the `+` of a file and its function."""
    cells = {cell.strip() for line in text.splitlines() if line.startswith("|") for cell in line.split("|")}
    return cells | {part for cell in cells for part in re.findall(r"`[^`]+`", cell)}


def test_the_python_of_the_readme_runs(
    exports: Exports, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exports("7", "torch")
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(folder.parent)
    exec(code, {})  # noqa: S102  our own text
    token, seconds = capsys.readouterr().out.split()
    assert 0 <= int(token) < AWKWARD["vocab"]
    assert float(seconds) > 0


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ({"targets": []}, "no target was named", "known: coreml, "),
        ({"targets": ["onxn-cpu"]}, "unknown target 'onxn-cpu'", "did you mean 'onnx-cpu'? known: coreml, "),
        ({"targets": ["torch"], "precision": "fp23"}, "target torch has no precision 'fp23'", "did you mean 'fp32'?"),
        (
            {"targets": ["coreml", "torch"], "precision": "fp16"},
            "target torch has no precision 'fp16'",
            "did you mean 'fp32'?",
        ),
        ({"targets": ["torch"], "options": {"ios": "17"}}, "no option 'ios' in torch", "these targets have no options"),
        ({"targets": ["coreml"], "options": {"oss": "17"}}, "no option 'oss' in coreml", "did you mean 'ios'?"),
        ({"targets": ["coreml"], "options": {"ios": "9"}}, "option ios cannot be '9'", "known: 16, 17, 18"),
        ({"targets": ["coreml"], "prefill": [4]}, "target coreml has no prefill graphs yet", "targets that have: "),
        ({"targets": ["torch"], "prefill": [4, 1]}, "prefill size 1 is not between 2 and 512", None),
        ({"targets": ["torch"], "prefill": [513]}, "prefill size 513 is not between 2 and 512", None),
        ({"targets": ["torch"], "ln_x_eps": 0.0}, "ln_x eps 0.0 is not between 0 and 1", "official models use 64e-5"),
        ({"targets": ["torch"], "ln_x_eps": float("nan")}, "ln_x eps nan is not between 0 and 1", "official models"),
    ],
)
def test_a_choice_that_cannot_be_meant_is_refused_with_what_can(
    exports: Exports, tmp_path: Path, arguments: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(WrongCall) as refused:
        export(exports.checkpoint("7"), out=tmp_path / "out", **arguments)
    assert refused.value.message == message
    assert (refused.value.hint or "").startswith(hint or "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"state": "mlstate"}, "MLState needs iOS 18, not 17"), ({"names": "rwkv-mobile"}, "three state tensors a layer")],
)
def test_what_one_target_cannot_do_is_refused_before_another_is_begun(
    exports: Exports, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(WrongCall, match=message):
        export(exports.checkpoint("4"), targets=["torch", "onnx-cpu", "coreml"], options=options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def lacking(weights: Tensors) -> None:
    del weights["blocks.1.att.r_k"]


def misshapen(weights: Tensors) -> None:
    weights["blocks.1.ffn.key.weight"] = weights["blocks.1.ffn.key.weight"][:, :-1].contiguous()


def another(weights: Tensors) -> None:
    weights["blocks.0.att.x_z"] = torch.zeros(3)


def gap(weights: Tensors) -> None:
    weights["blocks.3.ln1.weight"] = torch.zeros(96)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lacking, r"^blocks\.1\.att\.r_k is missing from this RWKV-7 checkpoint$"),
        (misshapen, r"^blocks\.1\.ffn\.key\.weight has shape \(232, 95\), expected \(232, 96\)$"),
        (another, r"^blocks\.0\.att\.x_z is not a tensor of RWKV-7$"),
        (gap, r"^block 2 of 4 is missing$"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_the_tensors_name(
    tmp_path: Path, damage: Callable[[Tensors], None], message: str
) -> None:
    weights = random_weights("7")
    damage(weights)
    with pytest.raises(BadCheckpoint, match=message):
        export(saved(weights, tmp_path / "damaged.pth"), targets=["torch"], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["blocks.1.att.value.weight", "emb.weight", "blocks.0.att.k_a"])
@pytest.mark.parametrize("target", ["torch", "onnx-cpu"])
def test_nan_in_a_weight_is_refused_and_leaves_nothing(tmp_path: Path, target: str, name: str) -> None:
    weights = random_weights("7")
    weights[name].view(-1)[[5, 7]] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(BadCheckpoint) as refused:
        export(saved(weights, tmp_path / "damaged.pth"), targets=[target], out=tmp_path / "out")
    assert refused.value.message == f"{name} holds 1 NaN and 1 Inf of {weights[name].numel()} values"
    assert list((tmp_path / "out").iterdir()) == []


# Tuned states


def tuned_states(seed: int = 4) -> Tensors:
    dice = Dice(seed)
    return {f"blocks.{i}.att.time_state": dice.normal(HEADS, SIZE, SIZE) for i in range(LAYERS)}


def package_trace(version: str, tuned: Tensors) -> Any:
    """The package transposes `time_state` of versions 5 and 6, and starts version 7 from what it is given."""
    weights = random_weights(version)
    if version == "7":
        start = {name.replace("time_state", "wkv"): tensor for name, tensor in tuned.items()}
        return Oracle(weights, version).trace(TOKENS, start)
    return Oracle(weights | tuned, version).trace(TOKENS)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("version", ["5.0", "5.2", "6", "7"])
def test_a_tuned_state_becomes_the_initial_state(
    exports: Exports, tmp_path: Path, version: str, separate: bool
) -> None:
    tuned = tuned_states()
    if separate:
        checkpoint, state = exports.checkpoint(version), saved(tuned, tmp_path / "state.pth")
    else:
        checkpoint, state = saved(random_weights(version) | tuned, tmp_path / "tuned.pth"), None
    (folder,) = export(checkpoint, targets=["torch"], out=tmp_path, state=state)
    with np.load(folder / "initial_state.npz", allow_pickle=False) as stored:
        assert set(stored.files) == {name.replace("time_state", "wkv") for name in tuned}
    session = runtimes.open_session(folder)
    found = errors(trace_of(session, TOKENS), package_trace(version, tuned))
    assert max(found.values()) < BOUND, found
    start = session.read_state(session.initial_state())["blocks.1.att.wkv"][0]
    as_stored = tuned["blocks.1.att.time_state"].numpy()
    np.testing.assert_array_equal(start, as_stored if version == "7" else as_stored.transpose(0, 2, 1))
    (row,) = validate([folder], steps=8).parity
    assert row.outcome is Outcome.PASS, row.reasons


@pytest.mark.parametrize("version", ["6", "7"])
def test_the_reference_starts_from_the_checkpoints_tuned_state(tmp_path: Path, version: str) -> None:
    path = saved(random_weights(version) | tuned_states(), tmp_path / "tuned.pth")
    found = errors(trace_of(reference_session(path), TOKENS), package_trace(version, tuned_states()))
    assert max(found.values()) < BOUND, found


def test_a_tuned_state_takes_the_shapes_and_names_of_any_target(exports: Exports, tmp_path: Path) -> None:
    path = saved(random_weights("6") | tuned_states(), tmp_path / "tuned.pth")
    options = {"names": "rwkv-mobile", "ios": "18", "state": "mlstate"}
    folders = export(path, targets=["onnx-cpu", "coreml"], precision="fp16", options=options, out=tmp_path)
    for row in validate(folders, steps=8).parity:
        assert row.outcome is Outcome.PASS, row.reasons


def test_an_artifact_that_lost_its_tuned_state_fails(tmp_path: Path) -> None:
    path = saved(random_weights("6") | tuned_states(), tmp_path / "tuned.pth")
    (folder,) = export(path, targets=["torch"], out=tmp_path)
    (folder / "initial_state.npz").unlink()
    document = dataclasses.replace(manifest.read(folder), initial_state=None, files=manifest.list_files(folder))
    manifest.write(document, folder)
    (row,) = validate([folder], steps=8).parity
    assert row.outcome is Outcome.FAIL
    assert any("before the first step" in reason for reason in row.reasons)


def partial_states(tuned: Tensors) -> None:
    del tuned["blocks.1.att.time_state"]


def deeper_states(tuned: Tensors) -> None:
    tuned["blocks.2.att.time_state"] = tuned["blocks.0.att.time_state"]


def wider_states(tuned: Tensors) -> None:
    tuned["blocks.1.att.time_state"] = torch.zeros(HEADS + 1, SIZE, SIZE)


def nan_states(tuned: Tensors) -> None:
    tuned["blocks.1.att.time_state"][0, 0, 0] = torch.nan


def no_states(tuned: Tensors) -> None:
    tuned.clear()
    tuned["emb.weight"] = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (partial_states, r"^blocks\.1\.att\.time_state is missing from the tuned states of this RWKV-6 of 2 layers$"),
        (deeper_states, r"^blocks\.2\.att\.time_state does not belong to the tuned states of this RWKV-6 of 2 layers$"),
        (wider_states, r"^blocks\.1\.att\.time_state has shape \(4, 32, 32\), expected \(3, 32, 32\)$"),
        (nan_states, r"^blocks\.1\.att\.time_state holds 1 NaN and 0 Inf of 3072 values$"),
        (no_states, r"^the state file has no time_state of this RWKV-6 model; it has emb\.weight$"),
    ],
)
def test_a_state_file_of_another_model_is_refused(
    exports: Exports, tmp_path: Path, damage: Callable[[Tensors], None], message: str
) -> None:
    tuned = tuned_states()
    damage(tuned)
    state = saved(tuned, tmp_path / "state.pth")
    with pytest.raises(BadCheckpoint, match=message):
        export(exports.checkpoint("6"), targets=["torch"], out=tmp_path / "out", state=state)
    assert not (tmp_path / "out").exists()


def test_tuned_states_come_from_one_place(tmp_path: Path) -> None:
    path = saved(random_weights("6") | tuned_states(), tmp_path / "tuned.pth")
    state = saved(tuned_states(seed=5), tmp_path / "state.pth")
    with pytest.raises(WrongCall, match="the checkpoint has tuned states of its own"):
        export(path, targets=["torch"], out=tmp_path / "out", state=state)


def test_version_4_has_no_state_to_tune(exports: Exports, tmp_path: Path) -> None:
    state = saved(tuned_states(), tmp_path / "state.pth")
    with pytest.raises(BadCheckpoint, match="no time_state of this RWKV-4 model"):
        export(exports.checkpoint("4"), targets=["torch"], out=tmp_path / "out", state=state)
    path = saved(random_weights("4") | tuned_states(), tmp_path / "tuned.pth")
    with pytest.raises(BadCheckpoint, match=r"time_state does not belong to the tuned states of this RWKV-4"):
        export(path, targets=["torch"], out=tmp_path / "out")


# The norm's epsilon


@pytest.mark.parametrize("version", ["5.2", "7"])
@pytest.mark.parametrize("target", ["torch", "onnx-cpu"])
def test_ln_x_eps_reaches_the_graph(exports: Exports, tmp_path: Path, version: str, target: str) -> None:
    (folder,) = export(exports.checkpoint(version), targets=[target], out=tmp_path, ln_x_eps=0.02)
    assert manifest.read(folder).model.ln_x_eps == 0.02
    got = trace_of(runtimes.open_session(folder), TOKENS)
    weights = random_weights(version)
    found = errors(got, trace_of(Reference(weights, version, ln_x_eps=0.02), TOKENS))
    assert max(found.values()) < BOUND, found
    assert errors(got, trace_of(Reference(weights, version), TOKENS))["logits"] > FAR
    (row,) = validate([folder], steps=8).parity
    assert row.outcome is Outcome.PASS, row.reasons


# The manifest and the files it vouches for


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
