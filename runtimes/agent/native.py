"""Sessions of a program without Python, made of serve.h: what such a program leaves out of a session is done here.

It knows neither which layers a stacked tensor holds nor how a tuned initial state is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn, cast

from runtimes.agent.session import AgentSession
from runtimes.contract import Array, Artifact, Placement, State
from runtimes.session import Tensors, explicit_session


class NativeSession(AgentSession):
    """As AgentSession, of an artifact that is here too."""

    def __init__(self, command: Sequence[str], artifact: Artifact, *, folder: str, place: str, where: str = "") -> None:
        self._here = explicit_session(artifact, {1: _elsewhere}, lambda: Placement(place, place))
        self._names = [tensor.name for tensor in artifact.manifest.state]
        self._tuned = artifact.manifest.initial_state is not None
        super().__init__(command, folder=folder, place=place, where=where)

    def initial_state(self) -> State:
        """The tuned initial state where the artifact has one, else each tensor's fill."""
        return self._sent(self._here.initial_state()) if self._tuned else super().initial_state()

    def read_state(self, state: State) -> dict[str, Array]:
        """Copies of the state tensors by name, those of each layer by themselves."""
        found = super().read_state(state)
        return self._here.read_state(cast(State, tuple(found[name] for name in self._names)))

    def write_state(self, arrays: Mapping[str, Array]) -> State:
        """A state from copies of named tensors; names and shapes must be exactly the artifact's."""
        return self._sent(self._here.write_state(arrays))

    def _sent(self, state: State) -> State:
        return super().write_state(dict(zip(self._names, cast(Tensors, state), strict=True)))


def _elsewhere(tokens: Array, state: Tensors) -> NoReturn:
    raise AssertionError("nothing is stepped here")
