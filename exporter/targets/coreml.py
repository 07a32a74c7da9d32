"""Core ML for Apple's CPUs and GPUs: one .mlpackage with explicit state, or with Core ML's own MLState on iOS 18."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exporter import graph, ports
from exporter.contract import Job, ModelSpec, Option, Spelling, Target, Written
from exporter.quiet import quiet
from runtimes.errors import WrongCall
from runtimes.manifest import Graph, Kept, Precision

TARGETS = (
    Target(
        name="coreml",
        summary="Core ML on iPhone, iPad and Mac; runs on Linux through the MIL interpreter",
        runtime="mil",
        device="cpu",
        precisions={"fp32": "fp32", "fp16": "fp16"},
        spelling=Spelling(l2_eps=1e-7),
        options=(
            Option("ios", ("16", "17", "18"), "17", "oldest iOS to support (macOS 13, 14, 15)"),
            Option(
                "state", ("explicit", "mlstate"), "explicit", "state as inputs and outputs, or kept by Core ML (iOS 18)"
            ),
        ),
        also_runs=("coreml:cpu", "coreml:gpu", "coreml:ane"),
    ),
)

PACKAGE = "model.mlpackage"


def missing() -> str | None:
    """Everything it needs is a core dependency."""
    return None


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """MLState exists since iOS 18, and in float16 only."""
    if options["state"] != "mlstate":
        return
    if options["ios"] != "18":
        raise WrongCall(f"MLState needs iOS 18, not {options['ios']}", hint="add -O ios=18, or -O state=explicit")
    if precision != "fp16":
        raise WrongCall(f"MLState is float16 only, not {precision}", hint="add -p fp16, or -O state=explicit")


def export(job: Job, folder: Path) -> Written:
    """Convert the step to an ML Program."""
    stateful = job.options["state"] == "mlstate"
    dtype = "float16" if job.precision == "fp16" else "float32"
    named = ports.own(job.spec, dtype=dtype, rename=_identifier)
    graph.load_weights(job.model, job.progress)
    with job.progress("converting to an ML Program"), quiet():
        package = _stateful(job, named) if stateful else _explicit(job, named)
    with job.progress(f"writing {PACKAGE}"):
        package.save(str(folder / PACKAGE))
        _make_reproducible(folder / PACKAGE)
    if stateful:
        named = ports.Ports(named.tokens, named.logits, tuple(_held(tensor) for tensor in named.state))
    kept = (Kept("token ids", "int32", "indices"),) if job.precision == "fp16" else ()
    tools = {name: version(name) for name in ("torch", "coremltools")}
    graphs = (Graph(1, PACKAGE, named.tokens, "int32", named.logits),)
    usage = {"Step it in Swift": SWIFT_STATE if stateful else SWIFT.format(shift=named.state[0].input)}
    return Written(graphs, named.state, Precision(dtype, dtype, kept), tools, usage)


def _explicit(job: Job, named: ports.Ports) -> Any:
    """Through torch.export, which names state inputs itself; they are renamed afterwards."""
    import coremltools as ct

    program = graph.trace(job.model, graph.arguments(job.spec, 1)).run_decompositions({})
    inputs = [_tokens(), *(ct.TensorType(shape=t.shape, dtype=_numpy(t.dtype)) for t in named.state)]
    outputs = [ct.TensorType(name=name, dtype=_numpy(named.state[0].dtype)) for name in named.outputs()]
    made = ct.convert(program, inputs=inputs, outputs=outputs, **_settings(job))
    spec = made.get_spec()
    for given, tensor in zip(program.graph_signature.user_inputs[1:], named.state, strict=True):
        ct.utils.rename_feature(spec, given, tensor.input, rename_outputs=False)
    return ct.models.MLModel(spec, weights_dir=made.weights_dir, skip_model_load=True)


def _stateful(job: Job, named: ports.Ports) -> Any:
    """Through torch.jit.trace: from torch.export, coremltools 9.0 loses fp16 state updates (KeyError)."""
    import coremltools as ct

    module = Stateful(job.model, job.spec)
    example = (torch.zeros(1, dtype=torch.int32),)
    traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
    module.reset()
    states = [
        ct.StateType(ct.TensorType(shape=t.shape, dtype=_numpy(t.dtype)), name=_identifier(t.name)) for t in named.state
    ]
    outputs = [ct.TensorType(name=named.logits, dtype=_numpy(named.state[0].dtype))]
    return ct.convert(traced, inputs=[_tokens()], outputs=outputs, states=states, **_settings(job))


class Stateful(nn.Module):
    """The step with its state in buffers that it overwrites: the form coremltools turns into MLState."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        for tensor in spec.state:
            self.register_buffer(_identifier(tensor.name), torch.full(tensor.shape, tensor.fill))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (1,) -> logits (1, V)."""
        names = [_identifier(tensor.name) for tensor in self.spec.state]
        logits: Tensor
        logits, *new = self.model(tokens, *(self.get_buffer(name) for name in names))
        for name, tensor in zip(names, new, strict=True):
            self.get_buffer(name)[:] = tensor
        return logits

    def reset(self) -> None:
        """Undo what tracing did to the buffers."""
        for tensor in self.spec.state:
            self.get_buffer(_identifier(tensor.name)).fill_(tensor.fill)


def _settings(job: Job) -> dict[str, Any]:
    import coremltools as ct

    precision = ct.precision.FLOAT16 if job.precision == "fp16" else ct.precision.FLOAT32
    return {
        "convert_to": "mlprogram",
        "minimum_deployment_target": getattr(ct.target, f"iOS{job.options['ios']}"),
        "compute_precision": precision,
        "skip_model_load": True,
    }


def _tokens() -> Any:
    import coremltools as ct
    import numpy as np

    return ct.TensorType(name="tokens", shape=(1,), dtype=np.int32)


def _numpy(dtype: str) -> Any:
    import numpy as np

    return np.dtype(dtype).type


def _identifier(name: str) -> str:
    """Core ML names are identifiers: dots become underscores."""
    return name.replace(".", "_")


def _held(tensor: Any) -> Any:
    """A state tensor Core ML keeps: one name, no separate output."""
    from dataclasses import replace

    return replace(tensor, output=tensor.input)


def _make_reproducible(package: Path) -> None:
    """Replace the package manifest's random identifiers and fix the order of the model's maps."""
    from coremltools.proto import Model_pb2

    listing = package / "Manifest.json"
    document = json.loads(listing.read_text())
    entries = sorted(document["itemInfoEntries"].items(), key=lambda item: item[1]["path"])
    fixed = {key: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])).upper() for key, entry in entries}
    document["itemInfoEntries"] = {fixed[key]: entry for key, entry in entries}
    document["rootModelIdentifier"] = fixed[document["rootModelIdentifier"]]
    # Byte for byte as coremltools writes it, which does so whenever it opens a package.
    listing.write_text(json.dumps(document, indent=4, sort_keys=True) + "\n")
    path = next(package.rglob("*.mlmodel"))
    spec = Model_pb2.Model()
    spec.ParseFromString(path.read_bytes())
    path.write_bytes(spec.SerializeToString(deterministic=True))


SWIFT = """Add `model.mlpackage` to the Xcode project, then:

```swift
let model = try MLModel(contentsOf: compiledURL, configuration: MLModelConfiguration())
var inputs: [String: MLFeatureValue] = initialState      // every state input, filled as listed below
inputs["tokens"] = MLFeatureValue(multiArray: token)     // int32, one id
let out = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: inputs))
let logits = out.featureValue(for: "logits")!.multiArrayValue!
inputs["{shift}"] = out.featureValue(for: "{shift}_next")!   // and so for every state tensor
```"""

SWIFT_STATE = """Add `model.mlpackage` to the Xcode project, then:

```swift
let model = try MLModel(contentsOf: compiledURL, configuration: MLModelConfiguration())
let state = model.makeState()      // zeros; write other fill values with state.withMultiArray(for:)
let out = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: ["tokens": token]), using: state)
let logits = out.featureValue(for: "logits")!.multiArrayValue!
```"""
