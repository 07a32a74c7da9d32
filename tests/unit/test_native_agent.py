"""The C++ side of the frames, as rwkv-step --serve: what Python's side does, strictly, and what it leaves to Python."""

from __future__ import annotations

import io
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runtimes
from exporter import export
from runtimes import manifest
from runtimes.agent import frames
from runtimes.agent.frames import Frame
from runtimes.agent.native import NativeSession
from runtimes.agent.programs import Program
from runtimes.backends import pte
from runtimes.contract import Session
from runtimes.errors import BadArtifact, CheckFailed, Missing, WrongCall
from tests.requirements import require
from tests.unit.small_exports import SIZES, TOKENS, checkpoint

pytestmark = pytest.mark.slow

PLACE = "pte:cpu-direct"


@pytest.fixture(scope="module")
def command() -> tuple[str, ...]:
    try:
        folder = pte.PROGRAM.folder(platform.machine())
    except Missing as error:
        require("cxx", error.message)
    return str(folder / pte.PROGRAM.name), "--serve", "--threads", "1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It starts from a tuned state, and has methods for one token and for four."""
    made = tmp_path_factory.mktemp("native")
    heads, size = SIZES["width"] // SIZES["head_size"], SIZES["head_size"]
    tuned = torch.randn(heads, size, size, generator=torch.Generator().manual_seed(1))
    torch.save(checkpoint("7", 1) | {"blocks.0.att.time_state": tuned}, made / "7.pth")
    (exported,) = export(made / "7.pth", targets=["executorch-xnnpack"], prefill=[4], out=made)
    return exported


@pytest.fixture(scope="module")
def session(command: tuple[str, ...], folder: Path) -> Iterator[NativeSession]:
    opened = opening(command, folder)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def here(folder: Path) -> Session:
    return runtimes.open_session(folder, "pte:cpu")


def opening(command: tuple[str, ...], folder: Path) -> NativeSession:
    return NativeSession(command, manifest.open_artifact(folder), folder=str(folder), place=PLACE)


def answers(command: tuple[str, ...], *asked: bytes) -> tuple[list[Frame], int, str]:
    """The replies to what is sent at once, the exit status, and what it says."""
    done = subprocess.run(command, input=b"".join(asked), capture_output=True, check=False)
    stream, replies = io.BytesIO(done.stdout), []
    while stream.tell() < len(done.stdout):
        replies.append(frames.read(stream))
    return replies, done.returncode, done.stderr.decode()


def packed(frame: Frame) -> bytes:
    stream = io.BytesIO()
    frames.write(stream, frame)
    return stream.getvalue()


def raw(header: str, *, version: int = frames.VERSION, magic: bytes = frames.MAGIC) -> bytes:
    return frames.PREFIX.pack(magic, version, len(header.encode())) + header.encode()


def test_it_gives_what_a_session_here_gives_bit_for_bit(session: NativeSession, here: Session) -> None:
    far, near = session.initial_state(), here.initial_state()
    for name, array in here.read_state(near).items():
        np.testing.assert_array_equal(session.read_state(far)[name], array)
    for token in TOKENS[:3]:
        got, wanted = session.step(token, far), here.step(token, near)
        far, near = got.state, wanted.state
        np.testing.assert_array_equal(got.logits, wanted.logits)
        assert 0 < got.seconds < 10
    states = session.read_state(far)
    got = session.prefill(TOKENS, session.write_state(states))  # two calls of four and two of one
    np.testing.assert_array_equal(got.logits, here.prefill(TOKENS, near).logits)
    for name, array in here.read_state(near).items():
        np.testing.assert_array_equal(states[name], array)
    assert (session.placement().observed, session.placement().evidence) == (PLACE, "run")


def test_a_state_stays_valid_after_it_was_stepped_from_and_buffers_are_used_again(session: NativeSession) -> None:
    start = session.step(3, session.initial_state()).state
    one = session.step(5, start).logits
    for token in TOKENS:
        session.prefill([token, 7, 1, 2, 9], start)
    np.testing.assert_array_equal(session.step(5, start).logits, one)


def test_errors_are_raised_here_by_their_class(
    command: tuple[str, ...], folder: Path, session: NativeSession, tmp_path: Path
) -> None:
    state = session.initial_state()
    for tokens, message in (([33], "token 33 is outside the vocabulary of 33"), ([], "at least one token")):
        with pytest.raises(WrongCall, match=message):
            session.prefill(tokens, state)
    with pytest.raises(WrongCall, match="state tensors do not match the artifact's: blocks"):
        session.write_state({})
    artifact = manifest.open_artifact(folder)
    with pytest.raises(WrongCall, match="this program is pte:cpu-direct, not ort:cpu"):
        NativeSession(command, artifact, folder=str(folder), place="ort:cpu")
    with pytest.raises(BadArtifact, match=r"nowhere is not an artifact: it has no manifest\.json"):
        NativeSession(command, artifact, folder="nowhere", place=PLACE)
    for name in (manifest.FILE_NAME, "model.pte"):
        shutil.copy(folder / name, tmp_path / name)
    told = json.loads((tmp_path / manifest.FILE_NAME).read_text())
    told["state"][0]["shape"][-1] *= 2
    (tmp_path / manifest.FILE_NAME).write_text(json.dumps(told))
    with pytest.raises(BadArtifact, match="another state than the manifest says"):
        NativeSession(command, artifact, folder=str(tmp_path), place=PLACE)
    (tmp_path / manifest.FILE_NAME).write_text("{")
    with pytest.raises(BadArtifact, match=r"manifest\.json: expected \" at byte 1"):
        NativeSession(command, artifact, folder=str(tmp_path), place=PLACE)


def test_states_that_nobody_holds_are_dropped(session: NativeSession) -> None:
    number = session.initial_state().number  # type: ignore[attr-defined]
    with pytest.raises(WrongCall, match=f"the agent has no state {number}"):
        session._ask("step", token=1, state=number)


def test_what_is_asked_of_nothing_and_what_cannot_be_asked(command: tuple[str, ...]) -> None:
    asked: list[dict[str, Any]] = [{"ask": "step"}, {"ask": "ä"}, {"drop": []}, {"ask": "close"}]
    asked.append({"ask": "open", "folder": "nowhere", "place": 3})
    replies, status, _ = answers(command, *(packed(Frame(header)) for header in asked))
    errors = [reply.header.get("error", {}).get("message") for reply in replies]
    assert errors[0] == "the agent has opened no artifact"
    assert errors[2:] == ["there is no 'ask'", None, "expected a text"]
    assert status == 0
    replies, *_ = answers(command, packed(Frame({"ask": "open", "folder": "ä\n😀", "place": PLACE})))
    assert replies[0].header["error"]["message"] == "ä\n😀 is not an artifact: it has no manifest.json"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Welcome to the board!", "expected a message"),
        (raw("{}", version=9), "speaks version 9 of the protocol"),
        (frames.PREFIX.pack(frames.MAGIC, 1, 1 << 31), "a header of 2147483648 bytes"),
        (raw("[]"), "expected an object"),
        (raw("{}"), "a header without 'tensors'"),
        (raw('{"tensors":[["a","object",[1]]]}'), "a tensor of type 'object'"),
        (raw('{"tensors":[["a","float32",[-1]]]}'), "an axis of -1"),
        (raw('{"tensors":[["a","float32",[1.5]]]}'), "expected a whole number"),
        (raw('{"tensors":[["a","float32"]]}'), "not [name, type, shape]"),
        (raw('{"tensors":[["a","float32",[9999999999]]]}'), "tensors of more than 4294967296 bytes"),
        (raw('{"tensors":[["a","int64",[4294967296,4294967296]]]}'), "tensors of more than 4294967296 bytes"),
        (raw('{"tensors":[["a","int32",[0]],["a","int32",[0]]]}'), "a tensor listed twice"),
        (raw('{"tensors":[]'), "expected }"),
        (raw('{"tensors":[],"tensors":[]}'), "'tensors' twice"),
        (raw('{"a":"\\ud800","tensors":[]}'), "half a character"),
        (raw('{"a":01,"tensors":[]}'), "a number starts with 0"),
        (raw('{"a":' + "[" * 70), "nested too deep"),
        (frames.PREFIX.pack(frames.MAGIC, 1, 3) + b'"\xff"', "not UTF-8"),
    ],
)
def test_what_is_no_frame_ends_it_with_the_reason(command: tuple[str, ...], content: bytes, message: str) -> None:
    replies, status, said = answers(command, content)
    assert (replies, status) == ([], 2)
    assert said.startswith("error: ")
    assert message in said


def test_a_frame_that_breaks_off_is_the_end(command: tuple[str, ...]) -> None:
    whole = packed(Frame({"ask": "set_state"}, {"a": np.ones(9, np.float32)}))
    for size in (0, 5, 20, len(whole) - 1):
        assert answers(command, whole[:size])[:2] == ([], 0)


def test_a_program_is_built_once_and_whole_or_says_what_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    script = tmp_path / "build.sh"
    program = Program("step", script, devices=("cpu",), package="numpy")

    script.write_text('mkdir -p "$2"; echo half > "$2/step"; echo "error: g++ is not installed" >&2; exit 3')
    with pytest.raises(Missing, match=r"step cannot be built: g\+\+ is not installed") as raised:
        program.folder("aarch64")
    assert raised.value.hint == "apt install g++-aarch64-linux-gnu binutils"
    script.write_text("echo main.cpp:3: error: no; exit 1 >&2")
    with pytest.raises(CheckFailed, match="step cannot be built"):
        program.folder("x86_64")
    assert list((tmp_path / "cache" / "rwkv-export" / "programs").iterdir()) == []

    script.write_text('mkdir -p "$2"; echo "$1" > "$2/step"')
    first = program.folder("x86_64")
    (first / "step").write_text("kept")
    assert (program.folder("x86_64") / "step").read_text() == "kept"
    assert (program.folder("aarch64") / "step").read_text() == "aarch64\n"
    script.write_text(script.read_text() + "\n")
    assert (program.folder("x86_64") / "step").read_text() == "host\n"

    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    script.write_text(script.read_text() + "\n")
    with pytest.raises(Missing, match="programs for x86_64 are built on Linux on x86_64"):
        program.folder("x86_64")
