"""A session whose artifact is open in another process: started here, asked over its stdin and stdout, timed there."""

from __future__ import annotations

import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np

from runtimes import errors
from runtimes.agent import frames
from runtimes.agent.frames import Frame, FrameError
from runtimes.contract import Array, Placement, State, Step
from runtimes.errors import Missing, RwkvExportError

T = TypeVar("T")

MODULE = "runtimes.agent.serve"
LINES = 12  # of what the other side printed last, in messages
SECONDS = 10  # to end by itself, once nobody asks any more


class AgentDied(RwkvExportError):
    """The process that held the session ended, or does not speak the protocol; the message has what it printed last."""


class Handle:
    """A state on the other side, dropped there with the first request after the last reference here is gone."""

    def __init__(self, number: int, dropped: list[int]) -> None:
        self.number = number
        self._dropped = dropped

    def __del__(self) -> None:
        self._dropped.append(self.number)


class AgentSession:
    """The session of an artifact folder in a process that runs `python -m runtimes.agent.serve`.

    command: what starts that process
    folder:  the artifact, as the other side names it
    place:   where the other side shall open it, "rknn:simulator"
    env:     the variables of the process; this one's where None
    where:   what stands before places that the other side speaks of, "ssh://board/"

    Times are taken on the other side. Raises what opening raised there, by the same classes; Missing where the command
    cannot be started, AgentDied where it ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: str,
        place: str,
        env: Mapping[str, str] | None = None,
        where: str = "",
    ) -> None:
        self._where, self._dropped = where, list[int]()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
            )
        except OSError as error:
            raise Missing(f"{command[0]} does not start: {error.strerror}") from error
        self._said: deque[str] = deque(maxlen=LINES)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self.facts = dict(self._ask("open", folder=folder, place=place).header)
        except BaseException:
            self._end()
            raise

    def initial_state(self) -> State:
        """The tuned initial state where the artifact has one, else each tensor's fill."""
        return self._state(self._ask("initial_state"))

    def step(self, token: int, state: State) -> Step:
        """One token; the state stays on the other side."""
        return self._stepped(self._ask("step", token=int(token), state=_number(state)))

    def prefill(self, tokens: Sequence[int], state: State) -> Step:
        """A prompt of any length >= 1."""
        return self._stepped(self._ask("prefill", tokens=[int(token) for token in tokens], state=_number(state)))

    def read_state(self, state: State) -> dict[str, Array]:
        """Copies of the state tensors by name."""
        return {name: np.array(array) for name, array in self._ask("get_state", state=_number(state)).tensors.items()}

    def write_state(self, arrays: Mapping[str, Array]) -> State:
        """A state from copies of named tensors."""
        return self._state(self._ask("set_state", arrays))

    def placement(self) -> Placement:
        """Where the other side says that it ran."""
        reply = self._ask("describe")
        made = _understood(lambda: Placement(**reply.header["placement"]))
        requested, observed = self._where + made.requested, self._where + made.observed
        return Placement(requested, observed, made.nodes, made.evidence)

    def close(self) -> None:
        """Let the other side close its session and end."""
        try:
            if self._process.poll() is None:
                self._ask("close")
        finally:
            self._end()

    def _ask(self, request: str, tensors: Mapping[str, Array] | None = None, **about: Any) -> Frame:
        dropped = [self._dropped.pop() for _ in range(len(self._dropped))]
        pipes = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        try:
            frames.write(pipes[0], Frame({"ask": request, "drop": dropped, **about}, tensors or {}))
            reply = frames.read(pipes[1])
        except (FrameError, OSError, ValueError) as error:  # ValueError: the pipe was closed before
            raise self._died(request, error) from error
        if trouble := reply.header.get("error"):
            raise _understood(lambda: _as_raised(trouble))
        return reply

    def _stepped(self, reply: Frame) -> Step:
        logits, seconds = _understood(lambda: (reply.tensors["logits"], float(reply.header["seconds"])))
        return Step(logits, self._state(reply), seconds)

    def _state(self, reply: Frame) -> State:
        return cast(State, Handle(_understood(lambda: int(reply.header["state"])), self._dropped))

    def _died(self, request: str, error: Exception) -> AgentDied:
        self._end()
        code, said = self._process.returncode, " | ".join(self._said)
        how = f"killed by signal {-code}" if code < 0 else f"exit status {code}" if code else "its connection closed"
        what = f"{error}" if isinstance(error, FrameError) and not isinstance(error, frames.Ended) else how
        return AgentDied(
            f"the process that held the session{self._where and f' on {self._where}'} is gone at {request!r}: {what}"
            + (f"; it printed last: {said}" if said else "; it printed nothing")
        )

    def _end(self) -> None:
        """Close its stdin, at which it ends; if it does not, kill it. Afterwards all that it printed has been read."""
        cast(BinaryIO, self._process.stdin).close()
        try:
            self._process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(SECONDS)
        for pipe in (self._process.stdout, self._process.stderr):
            cast(BinaryIO, pipe).close()

    def _listen(self) -> None:
        for line in cast(BinaryIO, self._process.stderr):
            if text := line.decode(errors="replace").rpartition("\r")[2].strip():
                self._said.append(text)


def _understood(read: Callable[[], T]) -> T:
    """What `read` finds in a reply; raises AgentDied where the other side left it out, or means something else."""
    try:
        return read()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise AgentDied(f"the other side answers what is no answer: {error!r}") from error


def _number(state: State) -> int:
    return cast(Handle, state).number


def _as_raised(trouble: Mapping[str, Any]) -> RwkvExportError:
    """The exception of the other side, of the same class where it is one of ours."""
    kind = getattr(errors, trouble["kind"], None) if trouble["kind"] else None
    found = kind if isinstance(kind, type) and issubclass(kind, RwkvExportError) else RwkvExportError
    return found(trouble["message"], hint=trouble["hint"])
