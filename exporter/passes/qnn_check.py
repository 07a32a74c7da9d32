"""Runs graphs that QNN may compile wrongly in its emulator before they ship; the comparison is coarse and no bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from exporter.ports import Ports
from exporter.progress import Progress
from runtimes.contract import Array
from runtimes.errors import WrongCall
from runtimes.qnn import provider
from runtimes.qnn.chips import CHIPS

FAR = 0.1  # of a tensor's largest value; what is right is off by 0.02, what is wrong by 0.3 and more
HINT = "leave out quantise=all, or try another --prefill: quantised products come out right of 8 and 32 tokens, not 16"


def require_right(file: Path, named: Ports, vocab: int, soc: str, progress: Progress) -> None:
    """Raise WrongCall where the emulator is far from ONNX Runtime's CPU, from a state that is not the initial one.

    QNN compiles some graphs wrongly without a word: rows of a quantised product of 16 tokens change places; products
    of a column and a row in 16 bits, and sums of RWKV-4's exponents, come out as something else.
    """
    import onnxruntime

    exact = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    ids, *state = (tensor.numpy() for tensor in named.arguments(exact.get_inputs()[0].shape[0]))
    first, second = np.random.default_rng(0).integers(0, vocab, (2, len(ids)))
    _, *state = exact.run(named.outputs(), _feed(named, first, state))
    with progress(f"checking {file.stem} in the emulator"):
        emulated = provider.session(file, provider.compiling(CHIPS[soc]), {})
        made = emulated.run(named.outputs(), _feed(named, second, state))
    wanted = exact.run(named.outputs(), _feed(named, second, state))
    for name, right, found in zip(named.outputs(), wanted, made, strict=True):
        off = float(np.abs(found - right).max() / max(np.abs(right).max(), 1e-3))
        if not off <= FAR:
            raise WrongCall(f"for {soc}, QNN computes {file.stem} wrongly: {name} is off by {off:.2g} of it", hint=HINT)


def _feed(named: Ports, ids: Array, state: list[Array]) -> dict[str, Array]:
    return dict(zip(named.inputs(), [ids, *state], strict=True))
