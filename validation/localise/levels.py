"""How much error one operation of an artifact may add: read from levels.toml for its precision; measures nothing."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from torch import fx

from runtimes.manifest import Manifest
from validation.localise.walk import Level

TABLE = Path(__file__).with_name("levels.toml")
ACTIVATIONS = re.compile(r"a(16|8)(?!\d)|(?<!\d)(16|8)d?a")
"""Bits of activations in the name of a precision: "w8a8", "a16w4", "8da4w"."""


def levels(manifest: Manifest, *, whole: bool) -> Level:
    """The level of each operation of the reference; where not `whole`, of all operations since the last known value."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    around = _of_arithmetic(manifest, table["arithmetic"])
    taking: float = max(around, table["weights"].get(str(fewest_bits(manifest)), 0.0))

    def level(node: fx.Node) -> float:
        if not whole:
            return float(table["several"]["times"] * taking)
        return taking if any(source.op == "get_attr" for source in node.all_input_nodes) else around

    return level


def fewest_bits(manifest: Manifest) -> int:
    """Of a weight: 32, 16, 8, 6 or 4."""
    found = re.search(r"\d+", manifest.precision.weights)
    return int(found[0]) if found else 32


def _of_arithmetic(manifest: Manifest, table: Mapping[str, float]) -> float:
    """The level of the narrowest type in which numbers are computed or kept."""
    found = ACTIVATIONS.search(manifest.target.precision)
    bits = next(filter(None, found.groups())) if found else ""
    named = [manifest.precision.compute, manifest.state[0].dtype, f"int{bits}"]
    short = {"bf16": "bfloat16", "fp16": "float16", "uint16": "int16"}
    return max(table.get(short.get(name, name), table["float32"]) for name in named)
