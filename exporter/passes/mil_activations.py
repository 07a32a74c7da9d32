"""Has what projections take rounded to 8 bits in an ML Program, by coremltools' own pass, in ranges found on a text.

coremltools finds ranges by running the program, which needs a Mac; these are those of the step in torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from exporter import calibration
from exporter.contract import Job, ModelSpec
from exporter.mil import identifier
from exporter.passes.mil_compress import ADAPTER, PRODUCTS
from exporter.passes.mil_pieces import Piece
from runtimes.errors import WrongCall
from runtimes.manifest import Kept

PRECISION = "w8a8"
OLDEST = 17  # the iOS whose programs can round activations
PROJECTION = re.compile(r"blocks\.\d+\.(att|ffn)\.\w+\.weight")
KEPT = (
    Kept("what the head and low-rank adapters take", "float16", "decays and logits come from them"),
    Kept("state, recurrence, norms and all other arithmetic", "float16", "8 bits are for what products take"),
)


def refuse(spec: ModelSpec, precision: str, options: Mapping[str, str]) -> None:
    """Raise WrongCall where programs cannot round activations, or no text can be read to find their ranges."""
    if precision != PRECISION:
        return
    if int(options["ios"]) < OLDEST:
        raise WrongCall(f"activations of 8 bits need iOS {OLDEST}, not {options['ios']}", hint="add -O ios=18")
    calibration.require_tokenizer(spec, "add -p int8")


def find(job: Job, pieces: Sequence[Piece]) -> None:
    """Give every piece the ranges of what its projections take on the text to calibrate on, if they are needed."""
    if job.precision != PRECISION:
        return
    tokens = calibration.passage(job.encode, job.text)
    ranges = calibration.ranges_of(job.model, job.spec, tokens, job.progress)
    for piece in pieces:
        names = [name for name, _ in piece.named_parameters() if PROJECTION.fullmatch(name)]
        own = {identifier(name): ranges.get(piece.in_step(name)) for name in names}
        piece.ranges = {name: found for name, found in own.items() if found and not ADAPTER.search(name)}


def compressing(compress: Callable[[Any], Any], piece: Piece) -> Callable[[Any], Any]:
    """`compress` of an MLModel whose projections take numbers of 8 bits, where the piece has ranges."""
    return (lambda model: compress(rounded(model, piece.ranges))) if piece.ranges else compress


def rounded(model: Any, ranges: Mapping[str, tuple[float, float]]) -> Any:
    """The MLModel of one function in which a pair of operations rounds what each of these weights is given."""
    import coremltools.optimize.coreml as optimize
    from coremltools import _SPECIFICATION_VERSION_IOS_17
    from coremltools.converters.mil.mil.passes.graph_pass import PassOption
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
    from coremltools.models.utils import _apply_graph_pass

    (block,) = model.get_spec().mlProgram.functions["main"].block_specializations.values()
    taken, chosen = {}, {}
    for operation in block.operations:
        weight = operation.inputs["weight"].arguments[0].name if operation.type in PRODUCTS else ""
        name = next((name for name in ranges if re.search(rf"(^|_){name}(_|$)", weight)), None)
        if name:
            least, largest = ranges[name]
            taken[operation.inputs["x"].arguments[0].name] = {"rmin": least, "rmax": largest}
            chosen[_name(operation)] = optimize.OpLinearQuantizerConfig(mode="linear")  # with a zero point
    insert = PASS_REGISTRY["compression::insert_prefix_quantize_dequantize_pair"]
    insert.set_options([PassOption("config", optimize.OptimizationConfig(op_name_configs=chosen))])
    insert.set_options([PassOption("activation_stats", taken)])
    return _apply_graph_pass(model, insert, spec_version=_SPECIFICATION_VERSION_IOS_17, skip_model_load=True)


def _name(operation: Any) -> str:
    return cast(str, operation.attributes["name"].immediateValue.tensor.strings.values[0])
