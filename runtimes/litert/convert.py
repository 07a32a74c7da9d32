"""The converter, driven within its own environment: torch.export programs to one .tflite file, none of it is run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtimes.backends import eager
from runtimes.errors import RwkvExportError, WrongCall


def convert(programs: Mapping[str, Path], made: Path, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Write `made` with a signature for each .pt2 file, inputs and outputs of all called as said, in their order.

    Weights that signatures share are written once. Raises BadArtifact for a file that could run code, WrongCall where
    the converter refuses one.
    """
    loaded = {name: eager.program(path) for name, path in programs.items()}
    import litert_torch
    from torch import Tensor, nn

    class Named(nn.Module):
        def __init__(self, step: nn.Module) -> None:
            super().__init__()
            self.step = step

        def forward(self, **given: Tensor) -> dict[str, Tensor]:
            return dict(zip(outputs, self.step(*given.values()), strict=True))

    converter = litert_torch.Converter()
    for name, program in loaded.items():
        examples, _ = program.example_inputs
        named = dict(zip(inputs, examples, strict=True))
        converter.add_signature(name, Named(program.module(check_guards=False)), sample_kwargs=named)
    try:
        converter.convert().export(str(made))
    except Exception as error:  # the converter's passes raise ValueError, its lowerings what they meet
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise WrongCall(f"the converter says: {said[0]}") from error


def main() -> None:
    """`python -m runtimes.litert.convert`: the arguments of `convert` as JSON on stdin, all talk on stderr."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asked = json.load(sys.stdin)
    programs = {name: Path(path) for name, path in asked["programs"].items()}
    try:
        convert(programs, Path(asked["made"]), inputs=asked["inputs"], outputs=asked["outputs"])
    except RwkvExportError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
