"""ExecuTorch .pte programs for Intel and AMD processors through OpenVINO, which takes the step whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from exporter import pte
from exporter.contract import Job, ModelSpec, Target, Written
from exporter.passes.edge_fold import folded
from exporter.quiet import quiet
from runtimes import openvino
from runtimes.manifest import Kept, Precision

TARGETS = (
    Target(
        name="executorch-openvino",
        summary="ExecuTorch with OpenVINO: x86 processors under Linux",
        runtime="pte",
        device="openvino",
        precisions={"fp32": "fp32", "fp16": "fp16-weights"},
        prefill=True,
    ),
)
PRECISIONS = {
    "fp32": Precision("float32", "float32"),
    "fp16": Precision("float16", "float32", (Kept("state", "float32", "the program's own type"),)),
}


def missing() -> str | None:
    """The delegate compiles with the package that it runs on."""
    return openvino.missing()


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Every combination works."""


def export(job: Job, folder: Path) -> Written:
    """Lower every method to one delegate call."""
    openvino.keep_float32()
    programs = folded(pte.traced(job))
    with _stored(half=job.precision == "fp16"):
        edge = pte.lowered(job, programs, _partitioners)
    usage = {"Arithmetic": ARITHMETIC}
    return pte.written(job, edge, folder, precision=PRECISIONS[job.precision], tools=("openvino",), usage=usage)


def _partitioners() -> list[Any]:
    _skip_the_quantiser()
    from executorch.backends.openvino.partitioner import OpenvinoPartitioner
    from executorch.exir.backend.backend_details import CompileSpec

    return [OpenvinoPartitioner([CompileSpec("device", b"CPU")])]


def _skip_the_quantiser() -> None:
    """Let parts of the delegate's package be imported without the package itself, whose quantiser needs nncf."""
    from executorch import backends

    package = ModuleType(f"{backends.__name__}.openvino")
    package.__path__ = [str(Path(folder) / "openvino") for folder in backends.__path__]
    sys.modules.setdefault(package.__name__, package)


@contextmanager
def _stored(*, half: bool) -> Iterator[None]:
    """Within the block what OpenVINO compiles stores its weights as float16, where `half`.

    The delegate has no setting for that; its compiler makes its `Core` by that name.
    """
    with quiet():
        from openvino._offline_transformations import compress_model_transformation
        from openvino.frontend.pytorch.torchdynamo import compile as compiler

    class Core(compiler.Core):  # type: ignore[misc]
        def compile_model(self, model: Any, *settings: Any) -> Any:
            if half:
                compress_model_transformation(model)
            return super().compile_model(model, *settings)

    own, compiler.Core = compiler.Core, Core
    try:
        yield
    finally:
        compiler.Core = own


ARITHMETIC = f"""The program computes in float32. On processors with bfloat16 instructions (Zen 4, Cooper Lake, Sapphire
Rapids and later) OpenVINO multiplies matrices in bfloat16 all the same, which costs up to 4e-2 of a logit. It does not
where this is in the environment before the program is loaded, as it is where programs are validated:

```
{openvino.INSTRUCTIONS}={openvino.WITHOUT_BFLOAT16}
```

The delegate's data is for the version of OpenVINO that wrote it, which is among the tools in manifest.json."""
