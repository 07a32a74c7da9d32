"""Quantises or serves a model file with librwkv through ctypes; run as `python -m peers.rwkvcpp_worker`.

quantise LIBRARY IN OUT TYPE | serve LIBRARY MODEL THREADS
"""

from __future__ import annotations

import ctypes
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from peers.protocol import serve, token, tokens
from runtimes.contract import Array

CHUNK = 64  # tokens a graph: the largest size rwkv.h speaks of

UINT, SIZE, POINTER, TEXT = ctypes.c_uint32, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
FUNCTIONS = {
    "rwkv_init_from_file": ((TEXT, UINT, UINT), POINTER),
    "rwkv_eval": ((POINTER, UINT, POINTER, POINTER, POINTER), ctypes.c_bool),
    "rwkv_eval_sequence_in_chunks": ((POINTER, POINTER, SIZE, SIZE, POINTER, POINTER, POINTER), ctypes.c_bool),
    "rwkv_get_n_vocab": ((POINTER,), SIZE),
    "rwkv_get_state_len": ((POINTER,), SIZE),
    "rwkv_quantize_model_file": ((TEXT, TEXT, TEXT), ctypes.c_bool),
    "rwkv_get_system_info_string": ((), TEXT),
}
"""What is called of rwkv.h: argument types, result type."""


def load(path: str) -> ctypes.CDLL:
    """The library with the types of its functions declared."""
    library = ctypes.CDLL(str(Path(path).resolve()))
    for name, (arguments, result) in FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


class RwkvCpp:
    """A context of rwkv.cpp; its state is one flat buffer, updated in place."""

    def __init__(self, library: ctypes.CDLL, model: str, threads: int) -> None:
        self._library = library
        self._context = library.rwkv_init_from_file(model.encode(), threads, 0)
        if not self._context:
            sys.exit(f"rwkv.cpp cannot load {model}")
        self._vocab = library.rwkv_get_n_vocab(self._context)
        self._state = np.zeros(library.rwkv_get_state_len(self._context), np.float32)
        self._logits = np.zeros(self._vocab, np.float32)

    def decode(self, count: int) -> list[float]:
        """One rwkv_eval a token."""
        state, logits = self._state.ctypes.data, self._logits.ctypes.data
        seconds = []
        for index in range(count):
            before = time.perf_counter()
            done = self._library.rwkv_eval(
                self._context, token(index, self._vocab), state if index else None, state, logits
            )
            seconds.append(time.perf_counter() - before)
            self._check(done)
        return seconds

    def prefill(self, count: int) -> float:
        """A prompt in chunks; the graph of a chunk size is cached by its first use."""
        prompt = np.array(tokens(count, self._vocab), np.uint32)
        pointers = prompt.ctypes.data, count, CHUNK, None, self._state.ctypes.data, self._logits.ctypes.data
        before = time.perf_counter()
        done = self._library.rwkv_eval_sequence_in_chunks(self._context, *pointers)
        seconds = time.perf_counter() - before
        self._check(done)
        return seconds

    def logits(self) -> Array:
        """After the last token that was fed."""
        return self._logits

    def _check(self, done: bool) -> None:
        if not done:
            sys.exit("rwkv.cpp refused to evaluate")


def main() -> None:
    verb, path, *rest = sys.argv[1:]
    library = load(path)
    if verb == "quantise":
        source, destination, kind = (word.encode() for word in rest)
        sys.exit(0 if library.rwkv_quantize_model_file(source, destination, kind) else 1)
    model, threads = rest
    imported = psutil.Process().memory_info().rss
    before = time.perf_counter()
    served = RwkvCpp(library, model, int(threads))
    seconds = time.perf_counter() - before
    system = library.rwkv_get_system_info_string().decode()
    serve(served, {"load_seconds": seconds, "base_rss_bytes": imported, "system": system})


if __name__ == "__main__":
    main()
