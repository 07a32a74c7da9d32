"""ML Programs: a step converted, compressed, joined with others into one package, written; knows no layout."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from exporter import graph
from exporter.passes.mil_fold import folded

PACKAGE = "model.mlpackage"
MULTIFUNCTION = 18  # the iOS from which a package can hold several functions


@dataclass(frozen=True)
class Port:
    """A tensor that goes into a function or comes out; `name` is an identifier, `dtype` a numpy name."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def example(self) -> Tensor:
        """Zeros that stand for it while a module is traced, which happens in float32."""
        whole = self.dtype.startswith("int")
        return torch.zeros(self.shape, dtype=torch.int32 if whole else torch.float32)


@dataclass(frozen=True)
class Recipe:
    """How functions are made.

    ios:      the oldest iOS to support, "18"
    half:     whether arithmetic is float16
    wide:     of coremltools' MIL operations those that stay float32 where it is
    compress: an MLModel of one function -> the same with its weights compressed, before functions are joined
    """

    ios: str
    half: bool
    wide: Callable[[Any], bool] | None = None
    compress: Callable[[Any], Any] | None = None

    def settings(self) -> dict[str, Any]:
        """Arguments of `coremltools.convert`."""
        import coremltools as ct

        precision: Any = ct.precision.FLOAT16 if self.half else ct.precision.FLOAT32
        if self.half and (wide := self.wide):
            precision = ct.transform.FP16ComputePrecision(op_selector=lambda operation: not wide(operation))
        return {
            "convert_to": "mlprogram",
            "minimum_deployment_target": getattr(ct.target, f"iOS{self.ios}"),
            "compute_precision": precision,
            "skip_model_load": True,
        }


def packages(functions: Sequence[str], ios: str) -> dict[str, tuple[str, str | None]]:
    """File and function, None for the only one in it, of each: one package for all, before iOS 18 one each."""
    if len(functions) == 1:
        return {functions[0]: (PACKAGE, None)}
    if int(ios) >= MULTIFUNCTION:
        return {name: (PACKAGE, name) for name in functions}
    return {name: (PACKAGE if name == graph.STEP else f"{name}.mlpackage", None) for name in functions}


def converted(
    module: nn.Module,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    recipe: Recipe,
    states: Sequence[Port] = (),
) -> Any:
    """The MLModel of one function, from a pure module with weights: (*inputs, *states) -> (*outputs, *new states).

    states: what Core ML is to keep between calls, in float16; none where all state is among inputs and outputs
    """
    from coremltools.converters.mil.mil import Builder

    Builder.name_count.clear()  # the names of operations shall not tell what this process converted before
    program = folded(graph.trace(module, tuple(port.example() for port in (*inputs, *states))).run_decompositions({}))
    made = _stateful(program, inputs, outputs, states, recipe) if states else _pure(program, inputs, outputs, recipe)
    return recipe.compress(made) if recipe.compress else made


def _pure(program: ExportedProgram, inputs: Sequence[Port], outputs: Sequence[Port], recipe: Recipe) -> Any:
    """As it was exported; torch.export names inputs itself, so they are renamed afterwards."""
    import coremltools as ct

    taken = [ct.TensorType(shape=port.shape, dtype=_numpy(port.dtype)) for port in inputs]
    made = ct.convert(program, inputs=taken, outputs=_named(outputs), **recipe.settings())
    spec = made.get_spec()
    for name, port in zip(program.graph_signature.user_inputs, inputs, strict=True):
        if name != port.name:
            ct.utils.rename_feature(spec, name, port.name, rename_outputs=False)
    return ct.models.MLModel(spec, weights_dir=made.weights_dir, skip_model_load=True)


def _stateful(
    program: ExportedProgram, inputs: Sequence[Port], outputs: Sequence[Port], states: Sequence[Port], recipe: Recipe
) -> Any:
    """Through torch.jit.trace: from torch.export, coremltools 9.0 loses fp16 state updates (KeyError)."""
    import coremltools as ct

    module = Holding(program.module(check_guards=False), len(outputs), states)
    example = tuple(port.example() for port in inputs)
    traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
    for port in states:
        module.get_buffer(port.name).zero_()  # undoes what tracing did: Core ML's state begins as zeros
    kept = [ct.StateType(ct.TensorType(shape=port.shape, dtype=_numpy(port.dtype)), name=port.name) for port in states]
    taken = [ct.TensorType(name=port.name, shape=port.shape, dtype=_numpy(port.dtype)) for port in inputs]
    return ct.convert(traced, inputs=taken, outputs=_named(outputs), states=kept, **recipe.settings())


class Holding(nn.Module):
    """A pure step with its state in buffers that it overwrites: the form coremltools turns into MLState."""

    def __init__(self, module: nn.Module, given: int, states: Sequence[Port]) -> None:
        super().__init__()
        self.module, self.given = module, given
        self.names = [port.name for port in states]
        for port in states:
            self.register_buffer(port.name, port.example())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The inputs without the state -> the first `given` outputs."""
        outputs = self.module(*inputs, *(self.get_buffer(name) for name in self.names))
        for name, tensor in zip(self.names, outputs[self.given :], strict=True):
            self.get_buffer(name)[:] = tensor
        return tuple(outputs[: self.given])


def _named(outputs: Sequence[Port]) -> list[Any]:
    import coremltools as ct

    return [ct.TensorType(name=port.name, dtype=_numpy(port.dtype)) for port in outputs]


def _numpy(dtype: str) -> Any:
    import numpy as np

    return np.dtype(dtype).type


def identifier(name: str) -> str:
    """Core ML names are identifiers: dots become underscores."""
    return name.replace(".", "_")


def save(functions: Mapping[str, Any], package: Path) -> None:
    """Write MLModels of one function each as one package, the same bytes every time.

    One alone is the package's `main`. Several keep their names, the first is the default, and they share every weight
    that is the same in all of them; that needs iOS 18.
    """
    if len(functions) == 1:
        (only,) = functions.values()
        only.save(str(package))
    else:
        _join(functions, package)
    _make_reproducible(package)


def _join(functions: Mapping[str, Any], package: Path) -> None:
    import coremltools as ct

    descriptor = ct.utils.MultiFunctionDescriptor()
    with tempfile.TemporaryDirectory(prefix="rwkv-export-", dir=package.parent) as folder:
        for name, model in functions.items():
            path = str(Path(folder) / f"{name}.mlpackage")
            model.save(path)
            descriptor.add_function(path, "main", name)
        descriptor.default_function_name = next(iter(functions))
        ct.utils.save_multifunction(descriptor, str(package))


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


def swift(tensor: str, functions: Sequence[str], *, held: bool) -> str:
    """How to step the package in an app; `tensor` is some state's input, `held` whether Core ML keeps the state."""
    text = SWIFT_HELD if held else SWIFT.format(state=tensor)
    if len(functions) == 1:
        return text
    names = ", ".join(f"`{name}`" for name in functions)
    return f"{text}\n\n{FUNCTIONS.format(names=names)}"


SWIFT = """Add `model.mlpackage` to the Xcode project, then:

```swift
let model = try MLModel(contentsOf: compiledURL, configuration: MLModelConfiguration())
var inputs: [String: MLFeatureValue] = initialState      // every state input, filled as listed below
inputs["tokens"] = MLFeatureValue(multiArray: token)     // int32, one id
let out = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: inputs))
let logits = out.featureValue(for: "logits")!.multiArrayValue!
inputs["{state}"] = out.featureValue(for: "{state}_next")!   // and so for every state tensor
```"""

SWIFT_HELD = """Add `model.mlpackage` to the Xcode project, then:

```swift
let model = try MLModel(contentsOf: compiledURL, configuration: MLModelConfiguration())
let state = model.makeState()      // zeros; write other fill values with state.withMultiArray(for:)
let out = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: ["tokens": token]), using: state)
let logits = out.featureValue(for: "logits")!.multiArrayValue!
```"""

FUNCTIONS = """There are {names}: where the table above names functions, choose one with `configuration.functionName`
before the model is opened. Without a mask each takes exactly as many tokens as it is listed with: feed a prompt by the
largest that fit, and what is left over one token at a time, each call with the state of the one before."""
