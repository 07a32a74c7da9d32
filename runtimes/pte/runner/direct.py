"""Programs stepped by step.h in this process, through ctypes: state stays in our arrays, and torch is not imported."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from runtimes.contract import Array
from runtimes.errors import BadArtifact, CheckFailed, Missing, WrongCall
from runtimes.pte import threads as pool
from runtimes.pte.ports import TYPES, Port
from runtimes.pte.runner import build
from runtimes.pte.wheel import standard_error_to

ROOM = 1024  # bytes of a reason, as library.cpp has it
REFUSED = {2: BadArtifact, 3: Missing}


class Program:
    """A program file, mapped; raises BadArtifact where ExecuTorch refuses it."""

    def __init__(self, path: Path, weights: Path | None) -> None:
        self._library = _library()
        threads = pool.agreed(self._library.rwkv_threads())
        self._handle = ctypes.c_void_p()
        data = str(weights).encode() if weights else b""
        self.call("rwkv_open", str(path).encode(), data, ctypes.c_uint32(threads), ctypes.byref(self._handle))
        pool.hold(self)

    def method(self, name: str) -> Method:
        """The method, its weights packed for this processor; raises BadArtifact, or Missing without its delegate."""
        found = ctypes.c_void_p()
        self.call("rwkv_method", self.handle, name.encode(), ctypes.byref(found))
        return Method(self, found, self._library)

    @property
    def handle(self) -> ctypes.c_void_p:
        """What the library knows it by; raises WrongCall once it is closed."""
        if not self._handle:
            raise WrongCall("the session is closed")
        return self._handle

    def call(self, function: str, *arguments: object) -> None:
        """One function that may refuse, with the reason raised."""
        why = ctypes.create_string_buffer(ROOM)
        if code := getattr(self._library, function)(*arguments, why):
            raise REFUSED.get(code, CheckFailed)(f"executorch: {why.value.decode(errors='replace')}")

    def close(self) -> None:
        """Give back its memory; its methods are gone with it."""
        if self._handle:
            self._library.rwkv_close(self._handle)
            self._handle = ctypes.c_void_p()
        pool.release(self)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()


class Method:
    """A loaded method; it holds its program."""

    def __init__(self, program: Program, handle: ctypes.c_void_p, library: Any) -> None:
        self._program, self._handle = program, handle
        self._pointers: dict[int, Any] = {}  # by a state's first tensor: a decode loop has two states
        self.ports = [_port(library, handle, index) for index in range(2 + library.rwkv_states(handle))]

    def step(self, ids: Array, before: Sequence[Array], after: Sequence[Array], logits: Array) -> None:
        """One call; `ids` are int64, and nothing is copied. Raises BadArtifact where the program fails."""
        tokens, found = ctypes.c_void_p(ids.ctypes.data), ctypes.c_void_p(logits.ctypes.data)
        state = self._addresses(before), self._addresses(after)
        self._program.call("rwkv_step", self._program.handle, self._handle, tokens, *state, found)

    def _addresses(self, tensors: Sequence[Array]) -> Any:
        """The C array of where the tensors lie. They are a pool's, which keeps them as long as the session lives."""
        key = id(tensors[0])
        if key not in self._pointers:
            self._pointers[key] = (ctypes.c_void_p * len(tensors))(*(tensor.ctypes.data for tensor in tensors))
        return self._pointers[key]


def _port(library: Any, method: ctypes.c_void_p, index: int) -> Port:
    nbytes = ctypes.c_uint64()
    kind = library.rwkv_port(method, ctypes.c_uint64(index), ctypes.byref(nbytes))
    return Port(TYPES.get(kind, f"type {kind}"), int(nbytes.value))


@cache
def _library() -> Any:
    loaded = ctypes.CDLL(str(build.library()))
    loaded.rwkv_threads.restype = loaded.rwkv_states.restype = ctypes.c_uint64
    loaded.rwkv_close.restype = None
    with tempfile.TemporaryFile() as log, standard_error_to(log):
        loaded.rwkv_threads()  # the runtime says where its messages went until now
    return loaded
