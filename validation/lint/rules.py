"""The rules as data: what each looks for, why, who says so and what to do; the looking itself is in checks.py.

No rule was measured by us: the Neural Engine has no public specification, and `source` is all the evidence there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a finding weighs.

    ERROR    known to push the model off the engine, or to fail there
    WARNING  reported to push single operations off it, to cost a lot, or to be wrong under conditions
    NOTE     worth knowing when something is slow or inexact
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Rule:
    """One rule. `what` reads as what was found; `fix` is an instruction; both without a full stop."""

    name: str
    severity: Severity
    what: str
    why: str
    source: str
    fix: str


APPLE = "apple/coreai-models, neural_engine_rules.md"
GUIDE = "ane-guide.readthedocs.io, chapter 17"
ISSUE = "apple/coremltools issue"
DRIFT = "our own measurement of RWKV-7 in float16"

RULES = (
    Rule(
        "package-size",
        Severity.ERROR,
        "more than 1.0 GB of weights in one package",
        "beyond 1.0 to 1.4 GB the system falls back to the GPU without a word, and iOS may end the app",
        "john-rocky/CoreML-LLM, QWEN35_LESSONS.md",
        "export in chunks, or with fewer bits",
    ),
    Rule(
        "expanded-size",
        Severity.WARNING,
        "more than 1.0 GB of weights once they are expanded to float16",
        "compression saves disk, not the engine's memory: it expands to float16",
        "john-rocky/CoreML-LLM, QWEN35_LESSONS.md",
        "export in chunks",
    ),
    Rule(
        "states",
        Severity.WARNING,
        "more than one state that Core ML keeps",
        "two or more have failed at the first prediction with status 0x1d, though the plan named the engine throughout",
        "john-rocky/CoreML-LLM, MLSTATE_PATTERN.md",
        "pass state as inputs and outputs, or stack it in one tensor",
    ),
    Rule(
        "state-alignment",
        Severity.ERROR,
        "a kept state whose last axis is no multiple of 32",
        "such a model runs on CPU and GPU and fails on the engine",
        f"{ISSUE} 2631",
        "pad the axis, or pass the state as input and output",
    ),
    Rule(
        "flexible-shape",
        Severity.ERROR,
        "an input of flexible shape",
        "the engine takes fully static shapes only",
        APPLE,
        "write one function for each shape",
    ),
    Rule(
        "fp32-compute",
        Severity.ERROR,
        "operations in float32",
        "the engine computes in float16; float32 falls to GPU or CPU",
        APPLE,
        "convert with float16 precision",
    ),
    Rule(
        "fp32-io",
        Severity.WARNING,
        "inputs or outputs in float32",
        "each call converts them on the CPU",
        APPLE,
        "declare them float16",
    ),
    Rule(
        "io-alignment",
        Severity.WARNING,
        "inputs or outputs whose last axis is no multiple of 64 bytes",
        "they are padded and copied at every call",
        APPLE,
        "put a longer axis last, a multiple of 32 in float16",
    ),
    Rule(
        "io-singleton",
        Severity.WARNING,
        "inputs or outputs whose last axis has length one",
        "each value is padded to 64 bytes: 32 times the memory in float16",
        APPLE,
        "put a longer axis last",
    ),
    Rule(
        "rank-limit",
        Severity.ERROR,
        "tensors of rank six or more",
        "the engine refuses a rank above five",
        APPLE,
        "reshape to rank four",
    ),
    Rule(
        "rank-five",
        Severity.NOTE,
        "tensors of rank five",
        "within the limit, yet the engine is laid out for four axes",
        APPLE,
        "reshape to rank four",
    ),
    Rule(
        "linear",
        Severity.WARNING,
        "products with constant weights that are no convolution",
        "the engine is a convolution machine; a linear is turned around before and after",
        f"{APPLE}; apple/ml-ane-transformers",
        "write them as 1x1 convolutions over (1, channels, 1, tokens)",
    ),
    Rule(
        "outer-product",
        Severity.NOTE,
        "matrix products over an axis of length one",
        "an outer product uses one lane of the product unit",
        "the shape of the hardware; no measurement known",
        "multiply with broadcasting",
    ),
    Rule(
        "product-limit",
        Severity.ERROR,
        "a product of rank four whose result exceeds 16384 in its last two axes, or 65536 channels",
        "one element more is refused when the engine's program is compiled",
        GUIDE,
        "split it, as language heads are",
    ),
    Rule(
        "dimension",
        Severity.WARNING,
        "results with an axis longer than 16384",
        "width and height end there, and heads of more channels are reported to fall back",
        f"{GUIDE}; 0seba/coremlmodels, AGENTS.md",
        "split the head in parts of 8192 and join their logits outside",
    ),
    Rule(
        "integer-compute",
        Severity.WARNING,
        "operations on 32-bit integers or truth values",
        "the engine has float16, int8 and int16; these run on the CPU and cut the program in segments",
        APPLE,
        "compute them outside, or drop negative-index handling",
    ),
    Rule(
        "indexing",
        Severity.WARNING,
        "gather, scatter, sorting or running sums",
        "run on the CPU; scatter has no path on any generation",
        f"{APPLE}; {GUIDE.replace('17', '4')}",
        "feed the embedding's row from outside",
    ),
    Rule(
        "control-flow",
        Severity.ERROR,
        "loops, branches or recurrent cells",
        "recurrent cells have no path on any generation; nested blocks are not interpreted here either",
        GUIDE.replace("17", "4"),
        "unroll them",
    ),
    Rule(
        "block-scales",
        Severity.ERROR,
        "weights whose scales or palettes vary along two axes",
        "the engine's compiler takes one a tensor or one an output channel; others go to the CPU",
        "cadamcat/llms-on-apple-neural-engine, README; Anemll/Anemll, README",
        "quantise by channel, or with a palette for groups of output channels",
    ),
    Rule(
        "small-epsilon",
        Severity.WARNING,
        "a constant below 6.1e-5 that guards a division or a root, or one that became zero",
        "below its smallest normal number float16 loses bits, and an engine that flushes subnormals loses it whole",
        DRIFT,
        "use 1e-4 or more, or scale what it is added to",
    ),
    Rule(
        "square-overflow",
        Severity.WARNING,
        "float16 squares that are then summed",
        "beyond 256 a square is infinite; a norm written so gave wrong logits without any infinity in them",
        DRIFT,
        "use layer_norm, or divide by the largest magnitude first",
    ),
    Rule(
        "tile",
        Severity.WARNING,
        "tile",
        "seen to corrupt what later calls compute",
        "skyfallsin/apple-neural-engine-field-guide",
        "broadcast, or concatenate",
    ),
    Rule(
        "int16-gather",
        Severity.WARNING,
        "a gather by 16-bit indices",
        "converters narrow indices by the vocabulary, which has gone wrong",
        f"{ISSUE} 2626",
        "convert without the pass add_int16_cast, or feed the row from outside",
    ),
    Rule(
        "wide-range",
        Severity.NOTE,
        "exponentials, powers or logarithms",
        "the engine's tables approximate them, and e^11.1 is infinite in float16",
        APPLE,
        "look at their inputs: rwkv-export inspect --fp16",
    ),
)
