"""Makes the two models that are compared, equal in layers, width, vocabulary and parameters; times nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import exporter
from exporter.synth import synth
from flat import transformer
from flat.sides import Transformer
from flat.transformer import Decoder, Shape
from runtimes import manifest
from runtimes.errors import CheckFailed

AGREE = 1e-4  # of the logits' standard deviation; fp32 sums in another order differ by some 1e-6
CHECKED = 32  # tokens from an empty cache


@dataclass(frozen=True)
class Pair:
    """Where both lie; `error` is the decoder's largest logit difference from torch / the logits' standard deviation."""

    rwkv: Path
    rwkv_parameters: int
    state_bytes: int
    decoder: Path
    shape: Shape
    parameters: int
    error: float


def prepare(folder: Path, *, layers: int, width: int, vocab: int, kv_heads: int, capacity: int) -> Pair:
    """Both models, exported into `folder`; raises WrongCall for sizes no fair pair has, CheckFailed for a wrong one."""
    checkpoint = synth("7", layers=layers, width=width, vocab=vocab, out=folder / "rwkv.pth")
    (rwkv,) = exporter.export(checkpoint, targets=["onnx-cpu"], precision="fp32", out=folder)
    described = manifest.read(rwkv)
    wanted = described.model.parameters
    shape = transformer.sized_like(Shape(layers, width, vocab, kv_heads, capacity), wanted)
    model = transformer.make(shape)
    path = transformer.export(model, folder / "decoder.onnx")
    state = sum(tensor.spec().nbytes for tensor in described.state)
    return Pair(rwkv, wanted, state, path, shape, transformer.parameters(model), checked(model, path))


def checked(model: Decoder, path: Path) -> float:
    """The error over tokens from an empty cache and one token after half a cache; raises CheckFailed above AGREE."""
    side = Transformer(path, model.shape.ports(), model.shape.cache_shape, model.shape.vocab)
    tokens = torch.randint(model.shape.vocab, (CHECKED,), generator=torch.Generator().manual_seed(0))
    stepped = np.stack([side.feed(int(token), keep=True) for token in tokens])
    wanted = model.reference(tokens)
    side.reach(halfway := model.shape.capacity // 2)
    past = [torch.from_numpy(tensor[:, :, :halfway]) for tensor in side.cache]
    later = side.feed(int(tokens[0]), keep=False)
    stepped = np.concatenate([stepped, later[None]])
    wanted = torch.cat([wanted, model.reference(tokens[:1], past)])
    error = float((torch.from_numpy(stepped) - wanted).abs().max() / wanted.std())
    if not error < AGREE:
        raise CheckFailed(f"the transformer's ONNX step is off by {error:.1e} standard deviations of its logits")
    return error
