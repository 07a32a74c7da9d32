"""Opens a saved .mlpackage folder: finds its files, parses the model and checks its description; runs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from runtimes.errors import BadArtifact, did_you_mean
from runtimes.mil import protobuf
from runtimes.mil.program import Function, parse_function
from runtimes.mil.types import TensorType, differences
from runtimes.mil.weights import Weights
from runtimes.untrusted import leaves


class Package:
    """A .mlpackage: its functions by name and the constants they share. Raises BadArtifact."""

    def __init__(self, folder: Path) -> None:
        path = model_file(folder)
        self._model = read_model(path)
        self.weights = Weights(path.parent)

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the entry points."""
        return tuple(sorted(self._model.mlProgram.functions))

    def function(self, name: str | None) -> Function:
        """An entry point, the package's default one for None."""
        description = self._model.description
        name = name or self._default
        if name not in self._model.mlProgram.functions:
            raise BadArtifact(f"the package has no function {name!r}", hint=did_you_mean(name, self.functions))
        function = parse_function(name, self._model.mlProgram.functions[name])
        described = next((entry for entry in description.functions if entry.name == name), description)
        _check_features(function, "input", described.input, function.inputs)
        _check_features(function, "state", described.state, function.states)
        _check_features(function, "output", described.output, function.output_types())
        return function

    def check_default(self, function: Function) -> None:
        """Raise BadArtifact where an app that names no function gets another one."""
        if self._default != function.name:
            raise BadArtifact(
                f"the package's default function, which an app gets that names none, is {self._default}; "
                f"the step for one token is {function.name}",
                hint="export the model again",
            )

    @property
    def _default(self) -> str:
        return self._model.description.defaultFunctionName or "main"


def model_file(folder: Path) -> Path:
    """The root model of a package's Manifest.json; raises BadArtifact."""
    path = folder / "Manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        item = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
        inside = str(item["path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadArtifact(f"{path} does not name the package's model: {error!r}", hint="export again") from error
    model = folder / "Data" / inside
    if leaves(inside) or not inside.isprintable() or not model.is_file():
        raise BadArtifact(f"{model} is missing", hint="copy the whole .mlpackage folder")
    return model


def read_model(path: Path) -> Any:
    """The protobuf Model in a file, an ML Program; raises BadArtifact."""
    try:
        model = protobuf.parse_model(path.read_bytes())
    except ValueError as error:
        raise BadArtifact(f"{path} is not a Core ML model: {error}", hint="export the model again") from error
    if model.WhichOneof("Type") != "mlProgram":
        raise BadArtifact(f"{path} is a {model.WhichOneof('Type')} model, expected mlProgram")
    return model


def _check_features(function: Function, what: str, features: Iterable[Any], declared: Mapping[str, TensorType]) -> None:
    """The description is what an app sees and the program what runs: names, types and shapes must agree."""
    described = {feature.name: _feature_type(feature) for feature in features}
    for name, one, other in differences(declared, described):
        raise BadArtifact(
            f"{what} {name} of function {function.name} is {one or 'absent'} in the program, "
            f"{other or 'absent'} in the description",
            hint="export the model again",
        )


def _feature_type(feature: Any) -> TensorType:
    kind = feature.type
    array = kind.stateType.arrayType if kind.WhichOneof("Type") == "stateType" else kind.multiArrayType
    return TensorType(protobuf.feature_element_name(array.dataType), tuple(array.shape))
