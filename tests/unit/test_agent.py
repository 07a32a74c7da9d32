"""Sessions in another process: the same numbers, the same errors, and clear words where the other side is gone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import runtimes
from runtimes.agent import bundle, frames, serve
from runtimes.agent.frames import Ended, Frame, FrameError
from runtimes.agent.session import MODULE, AgentDied, AgentSession
from runtimes.errors import BadArtifact, Missing, WrongCall
from tests.unit.small_exports import TOKENS, exported

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-m", MODULE)
TALKS = """
import os
import runtimes
from runtimes.agent import serve

def talks(*given, real=runtimes.open_session):
    print("hello from a toolkit", flush=True)
    os.write(1, b"and from its C code")
    return real(*given)

runtimes.open_session = talks
serve.main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("7", "onnx-cpu", tmp_path_factory.mktemp("agent"), prefill=[4])


@pytest.fixture(scope="module")
def session(folder: Path) -> Iterator[AgentSession]:
    env = bundle.environment(bundle.archive())
    opened = AgentSession(COMMAND, folder=str(folder), place="ort:cpu", env=env)
    yield opened
    opened.close()


def started(code: str) -> AgentSession:
    return AgentSession([sys.executable, "-c", code], folder="nowhere", place="ort:cpu")


def packed(frame: Frame) -> bytes:
    stream = io.BytesIO()
    frames.write(stream, frame)
    return stream.getvalue()


def test_a_frame_comes_back_as_it_was_sent() -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.zeros((0, 4), np.int64)}
    sent = Frame({"ask": "step", "text": "ä"}, {**tensors, "c": np.float16([1.5])})
    got = frames.read(io.BytesIO(packed(sent)))
    assert got.header == sent.header
    assert {name: array.dtype for name, array in got.tensors.items()} == {n: a.dtype for n, a in sent.tensors.items()}
    for name, array in sent.tensors.items():
        np.testing.assert_array_equal(got.tensors[name], array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Welcome to the board!", "expected a message, got b'Welc'"),
        (frames.PREFIX.pack(frames.MAGIC, 9, 2), "speaks version 9"),
        (frames.PREFIX.pack(frames.MAGIC, 1, 1 << 31), "more than"),
        (frames.PREFIX.pack(frames.MAGIC, 1, 2) + b"[]", "header that cannot be read"),
        (frames.PREFIX.pack(frames.MAGIC, 1, 33) + b'{"tensors":[["a","object",[1]]]} ', "is 'object' of shape"),
    ],
)
def test_what_is_no_frame_is_refused_before_anything_is_allocated(content: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        frames.read(io.BytesIO(content))


def test_tensors_beyond_the_limit_are_refused() -> None:
    for counts, size in (([99999999999], 399999999996), ([600 << 20, 600 << 20], 5033164800)):
        header = json.dumps({"tensors": [["a", "float32", [count]] for count in counts]}).encode()
        with pytest.raises(FrameError, match=f"tensors of {size} bytes"):
            frames.read(io.BytesIO(frames.PREFIX.pack(frames.MAGIC, 1, len(header)) + header))


def test_a_frame_that_breaks_off_is_the_end() -> None:
    whole = packed(Frame({"ask": "step"}, {"a": np.ones(9, np.float32)}))
    for size in (0, 5, 20, len(whole) - 1):
        with pytest.raises(Ended):
            frames.read(io.BytesIO(whole[:size]))


def test_it_gives_what_a_session_here_gives_bit_for_bit(folder: Path, session: AgentSession) -> None:
    here = runtimes.open_session(folder, "ort:cpu")
    far, near = session.initial_state(), here.initial_state()
    for token in TOKENS:
        got, wanted = session.step(token, far), here.step(token, near)
        far, near = got.state, wanted.state
        np.testing.assert_array_equal(got.logits, wanted.logits)
        assert 0 < got.seconds < 10
    states = session.read_state(far)
    for name, array in here.read_state(near).items():
        np.testing.assert_array_equal(states[name], array)
    got = session.prefill(TOKENS, session.write_state(states))
    np.testing.assert_array_equal(got.logits, here.prefill(TOKENS, near).logits)
    assert session.placement() == here.placement()


def test_a_state_stays_valid_after_it_was_stepped_from(session: AgentSession) -> None:
    start = session.step(3, session.initial_state()).state
    one = session.step(5, start).logits
    session.step(7, start)
    np.testing.assert_array_equal(session.step(5, start).logits, one)


def test_states_that_nobody_holds_are_dropped_on_the_other_side(folder: Path) -> None:
    server = serve.Server()
    server.answer(Frame({"ask": "open", "folder": str(folder), "place": "ort:cpu"}))
    first = server.answer(Frame({"ask": "initial_state"})).header["state"]
    second = server.answer(Frame({"ask": "step", "token": 3, "state": first})).header["state"]
    assert set(server.states) == {first, second}
    server.answer(Frame({"ask": "describe", "drop": [first]}))
    assert set(server.states) == {second}
    with pytest.raises(WrongCall, match=f"no state {first}"):
        server.answer(Frame({"ask": "step", "token": 3, "state": first}))
    with pytest.raises(WrongCall, match="no request 'evaluate'"):
        server.answer(Frame({"ask": "evaluate"}))


def test_a_handle_that_is_gone_is_told_with_the_next_request(session: AgentSession) -> None:
    state = session.initial_state()
    before = session.step(3, state)
    number = before.state.number  # type: ignore[attr-defined]
    del before
    with pytest.raises(WrongCall, match=f"no state {number}"):
        session._ask("step", token=1, state=number)


def test_errors_of_the_other_side_are_raised_here_by_their_class(session: AgentSession, tmp_path: Path) -> None:
    with pytest.raises(WrongCall, match="token 33 is outside the vocabulary of 33"):
        session.step(33, session.initial_state())
    with pytest.raises(BadArtifact, match="not an artifact") as raised:
        AgentSession(COMMAND, folder=str(tmp_path), place="ort:cpu")
    assert raised.value.hint == "make one with `rwkv-export export`"


def test_a_process_that_ends_is_told_with_what_it_printed_last() -> None:
    with pytest.raises(AgentDied, match=r"gone at 'open': exit status 3; it printed last: one \| two"):
        started("import sys; print('one', file=sys.stderr); print('two', file=sys.stderr); sys.exit(3)")


def test_a_process_that_is_killed_is_told_and_can_still_be_closed(folder: Path) -> None:
    opened = AgentSession(COMMAND, folder=str(folder), place="ort:cpu")
    state = opened.initial_state()
    opened._process.kill()
    with pytest.raises(AgentDied, match="gone at 'step': killed by signal 9"):
        opened.step(1, state)
    opened.close()


def test_a_shell_that_greets_is_told_by_its_greeting() -> None:
    with pytest.raises(AgentDied, match="expected a message, got b'Last'"):
        started("print('Last login: yesterday', flush=True); import time; time.sleep(0.2)")


def test_a_command_that_is_not_there_is_missing() -> None:
    with pytest.raises(Missing, match="no-such-program does not start: No such file"):
        AgentSession(["no-such-program"], folder="x", place="ort:cpu")


def test_the_bundle_is_all_that_another_python_needs_beside_numpy(tmp_path: Path) -> None:
    path = bundle.archive()
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"runtimes"}
    assert bundle._zipped(Path(runtimes.__file__).parent) == path.read_bytes()
    script = "import runtimes.agent.serve as s, sys; print(s.__file__, *sorted(sys.modules))"
    env = bundle.environment(path)
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    place, *modules = done.stdout.split()
    assert place.startswith(str(path))
    assert {"torch", "onnx", "onnxruntime", "exporter"} & set(modules) == set()


def test_what_a_runtime_prints_does_not_reach_the_pipe(folder: Path) -> None:
    opened = AgentSession([sys.executable, "-c", TALKS], folder=str(folder), place="ort:cpu")
    assert opened.step(1, opened.initial_state()).logits.shape == (33,)
    opened.close()
    assert "hello from a toolkit" in opened._said
