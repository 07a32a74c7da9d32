"""Eight bits for the projections of a graph, by the toolkit: their ranges from a text, everything else float16."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.errors import WrongCall
from runtimes.rknn.driver import configured, do

QUANTISED = "w8a8"
CALIBRATION = "calibration.json"
"""Beside a graph: `tokens` to read, `table` and its `dtype`, `fills` of the state, endings of weights to `quantise`."""
UNSET = "custom_quantize_layers: {}"
"""What the toolkit's list of layers that stay float16 is before somebody fills it."""


def quantised(source: Path, recipe: Path, *, soc: str) -> Any:
    """The toolkit's object after a build: ranges of every tensor first, then a list of layers that stay float16.

    In between lie files of the toolkit's own, pickles among them: they are made where this process stands, and no
    others are read.
    """
    import onnx

    told = json.loads(recipe.read_text(encoding="utf-8"))
    listed = _samples(source, told)
    rknn = configured(soc, quantized_dtype=QUANTISED)
    do("load_onnx", rknn.load_onnx(model=str(source)))
    do("hybrid_quantization_step1", rknn.hybrid_quantization_step1(dataset=str(listed)))
    rknn.release()
    settings = Path(f"{source.stem}.quantization.cfg")
    text = settings.read_text(encoding="utf-8")
    nodes = onnx.load(f"{source.stem}.model").graph.node
    half = [name for node in nodes if not _takes(node.input, told["quantise"]) for name in node.output]
    known = [name for name in half if f"\n    {name}:\n" in text]
    if UNSET not in text or not known:
        raise WrongCall(f"{settings.name} of this toolkit has another form than that of 2.5.0")
    chosen = "\n".join(f"    {name}: float16" for name in known)
    settings.write_text(text.replace(UNSET, f"custom_quantize_layers:\n{chosen}", 1), encoding="utf-8")
    rknn = configured(soc, quantized_dtype=QUANTISED)
    names = {"model_input": "model", "data_input": "data", "model_quantization_cfg": "quantization.cfg"}
    files = {key: f"{source.stem}.{ending}" for key, ending in names.items()}
    do("hybrid_quantization_step2", rknn.hybrid_quantization_step2(**files))
    return rknn


def _samples(source: Path, told: Mapping[str, Any]) -> Path:
    """What every input takes while the graph reads a text on the CPU, the state carried; the list of these files."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    row, *state = session.get_inputs()
    table = np.fromfile(source.with_name(told["table"]), told["dtype"]).reshape(-1, row.shape[1])
    values = [np.full(port.shape, fill, np.float32) for port, fill in zip(state, told["fills"], strict=True)]
    lines = []
    for number, token in enumerate(told["tokens"]):
        rows = table[[token]].astype(np.float32)
        given = {row.name: rows} | {port.name: value for port, value in zip(state, values, strict=True)}
        files = [Path(f"{number}_{name}.npy") for name in given]
        for file, array in zip(files, given.values(), strict=True):
            np.save(file, array)
        lines.append(" ".join(map(str, files)))
        _, *values = session.run(None, given)
    listed = Path("samples.txt").resolve()
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return listed


def _takes(inputs: Sequence[str], projections: Sequence[str]) -> bool:
    return any(name.endswith(tuple(projections)) for name in inputs)
