"""Finds which RWKV version a checkpoint is by asking every file of exporter/models; knows no version's maths."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import cast

from exporter import models
from exporter.contract import Version
from runtimes import registry
from runtimes.errors import BadCheckpoint, WrongCall, did_you_mean

# Names as in BlinkDL/RWKV-LM: RWKV-v7/rwkv_v7b_demo.py, RWKV-v7/rwkv_v8_rc00*_demo.py, RWKV-v8/*rosa*.py.
IMPOSSIBLE = (
    (
        r"rosa",
        "RWKV-8 with ROSA: it looks up the longest match in the whole text so far, a suffix automaton, "
        "which is neither a tensor operation nor a fixed-size state",
    ),
    (
        r"blocks\.\d+\.qkv\.|\.(?:qq|k_emb|v_emb)\b",
        "RWKV-7b or an RWKV-8 hybrid: it attends to every past token through a cache that grows with the text, "
        "so there is no fixed-size state to export",
    ),
    (r"\.ffn\.enn\.", "an RWKV-8 preview (rc00): no file of exporter/models describes its feed-forward"),
    (r"lora_[AB]\b", "a LoRA adapter, not a model: merge it into its base model first"),
)
"""Pattern of a tensor name, and why a checkpoint that has one cannot be exported."""

NAMES = ("VERSIONS", "matches", "dimensions", "layout", "spec", "build")


def by_version() -> dict[str, Version]:
    """Version string -> the file that covers it: exporter/models/v*.py; the folder's other files are shared parts."""
    numbers = {name: int(found[1]) for name in registry.plugins(models) if (found := re.match(r"v(\d+)", name))}
    known: dict[str, ModuleType] = {}
    for name in sorted(numbers, key=lambda name: numbers[name]):  # v7, v7a, v10
        file = registry.load_plugin(models, name, *NAMES)
        for version in file.VERSIONS:
            if version in known:
                raise TypeError(f"{known[version].__file__} and {file.__file__} both have version {version!r}")
            known[version] = file
    return cast(dict[str, Version], known)


def load(version: str) -> Version:
    """The file that covers `version`; raises WrongCall with a suggestion."""
    known = by_version()
    if version not in known:
        raise WrongCall(f"unknown RWKV version {version!r}", hint=did_you_mean(version, known))
    return known[version]


def identify(weights: Mapping[str, object]) -> tuple[Version, str]:
    """The version file and version string of a checkpoint, from its tensor names; raises BadCheckpoint."""
    _refuse_impossible(weights)
    known = by_version()
    for file in reversed(dict.fromkeys(known.values())):  # the newest first: it may keep what an older one looks for
        version = file.matches(weights.keys())
        if version is not None:
            if known.get(version) is not file:
                raise TypeError(f"the file of VERSIONS {file.VERSIONS} matches {version!r}, which is none of them")
            return file, version
    raise _unknown(weights.keys(), known)


def _refuse_impossible(names: Collection[str]) -> None:
    for pattern, why in IMPOSSIBLE:
        for name in names:
            if re.search(pattern, name):
                raise BadCheckpoint(f"this is {why} (seen from the tensor {name})", hint=_supported(by_version()))


def _unknown(names: Collection[str], known: Collection[str]) -> BadCheckpoint:
    seen = ", ".join(sorted(names)[:3])
    if any(name.startswith("blocks.") for name in names):
        return BadCheckpoint(f"this is no RWKV version known here: it holds {seen}", hint=_supported(known))
    return BadCheckpoint(f"this is not an RWKV checkpoint: it holds {seen}", hint=_supported(known))


def _supported(known: Collection[str]) -> str:
    return f"supported are RWKV versions {', '.join(known)}"
