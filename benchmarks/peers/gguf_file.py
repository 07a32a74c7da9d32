"""An RWKV-7 checkpoint as a GGUF file in half precision, tensor by tensor as llama.cpp names and lays them out.

The `gguf` package comes with llama.cpp's source (gguf-py) and is imported from there.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from torch import Tensor

from exporter.checkpoint import open_checkpoint
from exporter.contract import Weights
from exporter.models import v7
from runtimes.contract import Array
from runtimes.errors import Missing

CONTEXT = 1 << 20  # tokens; RWKV has no limit, llama.cpp wants a number
NORM_EPS = 1e-5
LERPS = "rwkvag"  # the order in which llama.cpp fuses the six token shifts of a layer

TOP = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
NORMS = {"ln1": "attn_norm", "ln2": "attn_norm_2", "att.ln_x": "time_mix_ln"}
MATRICES = {
    **{f"att.{name}.weight": f"time_mix_{name}" for name in ("receptance", "key", "value", "output")},
    **{f"ffn.{name}.weight": f"channel_mix_{name}" for name in ("key", "value")},
}
VECTORS = {
    **{f"att.{name}": f"time_mix_{name}" for name in ("w0", "a0", "v0", "k_k", "k_a", "r_k")},
    "ffn.x_k": "channel_mix_lerp_k",
}
LORAS = {f"att.{name}{end}": f"time_mix_{name}{end}" for name in "wavg" for end in (1, 2)}
FULL = ("time_mix_w1.weight", "time_mix_w2.weight", "lerp_fused.weight", "_norm.weight")
"""Ends of the matrices that llama.cpp's own converter leaves in float32."""


def gguf_tensors(weights: Weights, layers: int) -> Iterator[tuple[str, Array]]:
    """llama.cpp's names and arrays: matrices (out, in) in float16, vectors and what FULL names in float32."""
    for name, new in TOP.items():
        yield _stored(new, weights[name])
    for i in range(layers):
        for name, new in NORMS.items():
            for end in ("weight", "bias"):
                yield _stored(f"blk.{i}.{new}.{end}", weights[f"blocks.{i}.{name}.{end}"])
        for name, new in MATRICES.items():
            yield _stored(f"blk.{i}.{new}.weight", weights[f"blocks.{i}.{name}"])
        for name, new in VECTORS.items():
            yield _stored(f"blk.{i}.{new}.weight", weights[_unused(i, name)].flatten())
        for name, new in LORAS.items():
            yield _stored(f"blk.{i}.{new}.weight", weights[_unused(i, name)].T)
        lerps = [weights[f"blocks.{i}.att.x_{letter}"].float().numpy() for letter in LERPS]
        yield f"blk.{i}.time_mix_lerp_fused.weight", np.stack(lerps)  # (6, 1, 1, C)


def _unused(layer: int, name: str) -> str:
    """Layer 0 has no value residual; llama.cpp wants its tensors in the shapes of `a` and never reads them."""
    return f"blocks.{layer}.{name.replace('att.v', 'att.a') if layer == 0 and name in UNUSED else name}"


UNUSED = ("att.v0", "att.v1", "att.v2")


def _stored(name: str, tensor: Tensor) -> tuple[str, Array]:
    array: Array = tensor.float().numpy()
    half = array.ndim > 1 and not name.endswith(FULL)
    return name, np.ascontiguousarray(array, np.float16 if half else np.float32)


def write_gguf(checkpoint: Path, path: Path, package: Path) -> Path:
    """Write `path` from an RWKV-7 checkpoint; holds the half precision model in memory. Raises Missing."""
    gguf = load_gguf(package)
    weights = open_checkpoint(checkpoint)
    d = v7.measure(weights)
    part = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(part, "rwkv7")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(d.width)
    writer.add_feed_forward_length(d.ffn)
    writer.add_block_count(d.layers)
    writer.add_head_count(0)
    writer.add_wkv_head_size(d.head_size)
    writer.add_layer_norm_eps(NORM_EPS)
    writer.add_decay_lora_rank(d.ranks["w"])
    writer.add_iclr_lora_rank(d.ranks["a"])
    writer.add_value_residual_mix_lora_rank(d.ranks["v"])
    writer.add_gate_lora_rank(d.ranks["g"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")  # ids are fed, so there is nothing to look up
    writer.add_vocab_size(d.vocab)
    for name, array in gguf_tensors(weights, d.layers):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.replace(path)


def bytes_per_token(path: Path, package: Path) -> int:
    """Bytes of the tensors that a decoded token reads: all but the embedding table and layer 0's unused ones."""
    reader = load_gguf(package).GGUFReader(path)
    return sum(int(tensor.n_bytes) for tensor in reader.tensors if not _unread(tensor.name))


def _unread(name: str) -> bool:
    return name == "token_embd.weight" or (name.startswith("blk.0.time_mix_v") and "value" not in name)


def load_gguf(package: Path) -> ModuleType:
    """The module gguf of the folder gguf-py; raises Missing."""
    sys.path.append(str(package))
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise Missing(
            f"the Python package gguf cannot be imported from {package}: {error}",
            hint="it comes with llama.cpp's source in gguf-py, and needs numpy, pyyaml and tqdm",
        ) from error
    finally:
        sys.path.remove(str(package))
