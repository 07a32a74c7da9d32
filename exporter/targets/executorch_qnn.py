"""ExecuTorch .pte programs for Qualcomm's Hexagon NPUs: compiled by QNN for one processor, run here by its emulator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule

from exporter import pte
from exporter.calibration import passage
from exporter.contract import Job, ModelSpec, Option, Spelling, Target, Written
from exporter.coverage import coverage
from exporter.passes.edge_fold import folded
from exporter.passes.pt2e import quantised
from exporter.passes.qnn_rewrites import keep_activations_apart, outer_products_as_matmuls
from exporter.passes.torch_prepare import with_half_fills
from exporter.quiet import quiet
from runtimes import qnn
from runtimes.errors import WrongCall
from runtimes.manifest import Kept, Precision
from runtimes.qnn.chips import CHIPS

SOCS = tuple(CHIPS)
TARGETS = (
    Target(
        name="executorch-qnn",
        summary="ExecuTorch with Qualcomm's QNN: Hexagon NPUs of Snapdragon phones; runs on Linux in its emulator",
        runtime="pte",
        device="htp-emulator",
        precisions={"fp16": "fp16", "16a8w": "int8"},
        spelling=Spelling(head_norm="layer_norm_affine", l2_eps=1e-7, block=8),
        options=(
            Option("soc", SOCS, SOCS[0], "the processor to compile for; sm8650 is Snapdragon 8 Gen 3"),
            Option("share", ("no", "yes"), "no", "prefill methods share decode's weights, which the emulator refuses"),
        ),
        prefill=True,
        calibrated=("16a8w",),
    ),
)
CALIBRATION = 256  # tokens
HELD = Kept("token ids, and state between calls", "int32, float32", "the program's own types")
PRECISIONS = {"fp16": Precision("float16", "float16", (HELD,)), "16a8w": Precision("int8", "uint16", (HELD,))}


def missing() -> str | None:
    """Whether QNN's libraries are on this machine."""
    return qnn.missing()


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Between -60000 and a few, as RWKV-4's largest exponent starts, 16 bits leave no step for anything small."""
    wide = [tensor for tensor in spec.state if tensor.fill]
    if precision == "16a8w" and wide:
        raise WrongCall(
            f"16a8w cannot hold {wide[0].name}, which starts at {wide[0].fill:g}, in 65536 even steps",
            hint="-p fp16",
        )


def export(job: Job, folder: Path) -> Written:
    """Lower every method to one delegate call that takes token ids and float32 state."""
    qnn.prepare()
    job = with_half_fills(job)
    programs = folded(pte.traced(job, ids=torch.int32))
    with _mkldnn_kept():
        modules = {name: module_of(job, program) for name, program in programs.items()}
        edge = _lowered(job, modules, programs)
    _require_whole(job, edge, programs)
    tools = ("torchao",) if job.precision == "16a8w" else ()
    written = pte.written(job, edge, folder, precision=PRECISIONS[job.precision], ids=torch.int32, tools=tools)
    return replace(written, tools={**written.tools, "qnn": qnn.version()})


def module_of(job: Job, program: ExportedProgram) -> GraphModule:
    """The method as QNN is given it: rewritten, and for 16a8w calibrated and with quantise operators."""
    module = program.module(check_guards=False)
    if job.precision == "fp16":
        return keep_activations_apart(module)
    inputs, _ = program.example_inputs
    text = passage(job.encode, job.text)[:CALIBRATION]
    with quiet():
        module = outer_products_as_matmuls(module)
        return quantised(module, inputs, _quantizer(job), text, job.progress)


def _quantizer(job: Job) -> Any:
    """16-bit activations between the least and the largest value seen; the default's moving average forgets them."""
    from executorch.backends.qualcomm.quantizer.quantizer import QnnQuantizer, QuantDtype
    from torchao.quantization.pt2e import MinMaxObserver

    quantizer = QnnQuantizer(soc_model=_chipset(job))
    quantizer.set_default_quant_config(
        QuantDtype.use_16a8w, is_conv_per_channel=True, is_linear_per_channel=True, act_observer=MinMaxObserver
    )
    return quantizer


def _lowered(job: Job, modules: Mapping[str, GraphModule], programs: Mapping[str, ExportedProgram]) -> Any:
    inputs = {name: program.example_inputs[0] for name, program in programs.items()}
    half, share = job.precision == "fp16", job.options["share"] == "yes"
    with job.progress(f"compiling for {job.options['soc']}"), quiet(), qnn.muted():
        from executorch.backends.qualcomm.utils import utils

        backend = utils.generate_htp_compiler_spec(use_fp16=half, use_weight_sharing=share)
        specs = utils.generate_qnn_executorch_compiler_spec(soc_model=_chipset(job), backend_options=backend)
        try:
            return utils.to_edge_transform_and_lower_to_qnn(
                dict(modules), inputs, specs, constant_methods=pte.described(job.spec)
            )
        except (AssertionError, RuntimeError) as error:
            said, _, _ = str(error).partition("\n")
            message = f"QNN cannot compile {job.precision} for {job.options['soc']}: {said}"
            raise WrongCall(message, hint="try another -O soc=...") from error


def _require_whole(job: Job, edge: Any, methods: Iterable[str]) -> None:
    """Operators of a quantised method that stay outside are handed integers and take them for values."""
    for method in methods:
        found = coverage(edge.exported_program(method))
        if found.outside or found.delegates != {"QnnBackend": 1}:
            raise WrongCall(
                f"QNN takes {method} in {job.precision} as {sum(found.delegates.values())} delegates, not one; "
                f"outside: {', '.join(found.outside) or 'nothing'}",
                hint="try another precision, or another -O soc=...",
            )


def _chipset(job: Job) -> Any:
    from executorch.backends.qualcomm.serialization.qc_schema import QcomChipset

    return QcomChipset(CHIPS[job.options["soc"]])


@contextmanager
def _mkldnn_kept() -> Iterator[None]:
    """On AMD processors the toolchain turns a setting of torch off for the whole process."""
    before = torch.backends.mkldnn.enabled
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
