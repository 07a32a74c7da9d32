"""Makes checkpoints with random weights at real shapes, for tests and speed; they say nothing when asked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from exporter import versions
from exporter.contract import Entry, Layout
from exporter.formats import pth, safetensors
from exporter.progress import Progress, silent
from runtimes.errors import Missing, WrongCall, did_you_mean

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WRITERS = {".pth": pth.write, ".safetensors": safetensors.write}


class Size(NamedTuple):
    """Depth, width and vocabulary of a model."""

    layers: int
    width: int
    vocab: int = 65536


SIZES = {
    "tiny": Size(2, 128, 257),
    "0.1b": Size(12, 768),
    "0.4b": Size(24, 1024),
    "1.5b": Size(24, 2048),
    "2.9b": Size(32, 2560),
    "7b": Size(32, 4096),
}
"""Official sizes, named by RWKV-7's parameter counts; other versions of a size differ by some percent."""

HEAD_SIZE = 64

MOST = {"layers": 1024, "width": 65536, "head size": 65536, "vocab": 1 << 24}
"""Beyond these a number is a slip: no model is near."""


def synth(
    version: str,
    *,
    size: str = "tiny",
    layers: int | None = None,
    width: int | None = None,
    head_size: int | None = None,
    vocab: int | None = None,
    seed: int = 0,
    dtype: str = "bf16",
    out: Path,
    progress: Progress = silent,
) -> Path:
    """Write a random checkpoint of `version` to `out` (.pth or .safetensors) and return `out`.

    layers, width, vocab: override what `size` says; width must be a multiple of head_size (64)
    seed:  equal arguments give equal tensors, each drawn from a generator of its own
    dtype: "fp32", "fp16" or "bf16"
    Holds one tensor in memory at a time. Raises WrongCall, or Missing where the disk is full.
    """
    _check(size in SIZES, f"unknown size {size!r}", did_you_mean(size, SIZES))
    _check(dtype in DTYPES, f"unknown dtype {dtype!r}", did_you_mean(dtype, DTYPES))
    _check(out.suffix in WRITERS, f"cannot write {out.name}: unknown kind of file", f"known: {', '.join(WRITERS)}")
    base = SIZES[size]
    layout = _layout(
        version,
        layers=base.layers if layers is None else layers,
        width=base.width if width is None else width,
        head_size=HEAD_SIZE if head_size is None else head_size,
        vocab=base.vocab if vocab is None else vocab,
    )
    total = sum(math.prod(entry.shape) for entry in layout.values())
    with progress(f"drawing {total:,} parameters", total=total) as advance:

        def value(name: str) -> Tensor:
            drawn = draw(name, layout[name], seed).to(DTYPES[dtype])
            advance(drawn.numel())
            return drawn

        _write(out, DTYPES[dtype], {name: entry.shape for name, entry in layout.items()}, value)
    return out


def draw(name: str, entry: Entry, seed: int) -> Tensor:
    """The values of one tensor, float32, depending on nothing but its name, its entry and the seed."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return entry.fill(generator, entry.shape)


def _layout(version: str, *, layers: int, width: int, head_size: int, vocab: int) -> Layout:
    file = versions.load(version)
    for name, value in {"layers": layers, "width": width, "head size": head_size, "vocab": vocab}.items():
        _check(0 < value <= MOST[name], f"{name} is {value}, expected 1 to {MOST[name]}")
    _check(width % head_size == 0, f"width {width} is not a multiple of the head size {head_size}")
    dimensions = file.dimensions(version, layers=layers, width=width, head_size=head_size, vocab=vocab)
    layout = file.layout(version, dimensions)
    return {name: entry for name, entry in layout.items() if entry.official}


def _check(condition: bool, message: str, hint: str | None = None) -> None:
    if not condition:
        raise WrongCall(message, hint=hint)


def _write(
    out: Path, dtype: torch.dtype, shapes: Mapping[str, tuple[int, ...]], value: Callable[[str], Tensor]
) -> None:
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[out.suffix](part, dtype, shapes, value)
        part.replace(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space, or choose another place"
            raise Missing(f"cannot write {out}: {error.strerror}", hint=hint) from error
        raise WrongCall(f"cannot write {out}: {error.strerror}", hint="choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
