"""The two runners, each to live in a process of its own: they step, time and weigh; they export and judge nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from runtimes import manifest, open_session, threads
from runtimes.contract import Array
from runtimes.huge_pages import huge_pages

WARM = 3  # untimed tokens before a window


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one side, the first at `position`.

    carried_bytes: state or cache that a token at `position` needs; rss_bytes: resident size of the side's process
    """

    position: int
    samples_ms: tuple[float, ...]
    carried_bytes: int
    rss_bytes: int


class Side(Protocol):
    """One model being decoded. Positions only grow."""

    def reach(self, position: int) -> None:
        """Go to `position`, however long that takes."""

    def step(self, *, keep: bool) -> Array:
        """Logits (V,) of a random token here; without `keep` the next token is at the same position again."""

    def carried_bytes(self) -> int:
        """Size in memory of what is carried from token to token."""


class Rwkv:
    """An artifact run as users run it; every position is reached by decoding every token up to it."""

    def __init__(self, folder: Path) -> None:
        self._session = open_session(folder)
        self._manifest = manifest.read(folder)
        self._state = self._session.initial_state()
        self._position = 0
        self._random = np.random.default_rng(0)

    def reach(self, position: int) -> None:
        while self._position < position:
            self.step(keep=True)

    def step(self, *, keep: bool) -> Array:
        token = int(self._random.integers(self._manifest.model.vocab))
        step = self._session.step(token, self._state)
        if keep:
            self._state, self._position = step.state, self._position + 1
        return step.logits

    def carried_bytes(self) -> int:
        """Of the arrays as they are now, whatever the manifest says."""
        return sum(array.nbytes for array in self._session.read_state(self._state).values())


class Transformer:
    """The decoder's ONNX step: past and present are one buffer, written in place, so nothing of a cache is copied.

    It has what the runtime gives RWKV: as many threads, weights on huge pages, bound buffers.
    cache_shape: (1, kv_heads, capacity, 64) of each of the tensors `ports`
    """

    def __init__(self, path: Path, ports: list[str], cache_shape: tuple[int, ...], vocab: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = threads.requested()
        with huge_pages():
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self.cache: list[Array] = [np.empty(cache_shape, np.float32) for _ in ports]  # resident once it is filled
        self._token, self._last, self._total = np.zeros(1, np.int64), np.zeros(1, np.int32), np.zeros((), np.int32)
        self._logits = np.empty((1, vocab), np.float32)
        inputs: dict[str, Array] = {"token": self._token, "last": self._last, "total": self._total}
        outputs: dict[str, Array] = {"logits": self._logits}
        for name, tensor in zip(ports, self.cache, strict=True):
            inputs[f"past_{name}"] = outputs[f"present_{name}"] = tensor
        self._values: list[Any] = []  # they are views of the arrays and must live as long
        self._bind(inputs, self._binding.bind_ortvalue_input)
        self._bind(outputs, self._binding.bind_ortvalue_output)
        self._position = 0
        self._random = np.random.default_rng(0)

    def _bind(self, arrays: dict[str, Array], bind: Callable[[str, Any], None]) -> None:
        from onnxruntime import OrtValue

        for name, array in arrays.items():
            self._values.append(OrtValue.ortvalue_from_numpy(array))
            bind(name, self._values[-1])

    def reach(self, position: int) -> None:
        """Fill the cache with normal numbers: how long a token takes depends on how many there are only."""
        new = slice(self._position, position)
        for tensor in self.cache:
            tensor[:, :, new] = self._random.standard_normal(tensor[:, :, new].shape, np.float32)
        self._position = position

    def step(self, *, keep: bool) -> Array:
        return self.feed(int(self._random.integers(self._logits.size)), keep=keep)

    def feed(self, token: int, *, keep: bool) -> Array:
        """Logits (V,) of `token` here."""
        self._token[0], self._last[0], self._total[()] = token, self._position, self._position + 1
        self._session.run_with_iobinding(self._binding)
        self._position += keep
        return self._logits.reshape(-1).copy()

    def carried_bytes(self) -> int:
        """Of the entries in use; the buffers are reserved for all of `capacity` from the start."""
        return sum(tensor[:, :, : self._position].nbytes for tensor in self.cache)


def measured(side: Side, position: int, tokens: int) -> Window:
    """`tokens` timed tokens from `position` on, after a few that are not."""
    side.reach(position)
    carried = side.carried_bytes()
    for _ in range(WARM):
        side.step(keep=False)
    samples = []
    for _ in range(tokens):
        start = time.perf_counter()
        side.step(keep=True)
        samples.append(1e3 * (time.perf_counter() - start))
    return Window(position, tuple(samples), carried, psutil.Process().memory_info().rss)


class Apart:
    """A side in a process of its own, so that memory is its alone and no thread of one spins while the other works."""

    def __init__(self, make: Callable[..., Side], *arguments: Any) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_open, initargs=(make, arguments))

    def measure(self, position: int, tokens: int) -> Window:
        return self._pool.submit(_measure, position, tokens).result()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


_here: list[Side] = []
"""The side of this process."""


def _open(make: Callable[..., Side], arguments: tuple[Any, ...]) -> None:
    _here.append(make(*arguments))


def _measure(position: int, tokens: int) -> Window:
    return measured(_here[0], position, tokens)
