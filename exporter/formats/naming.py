"""Finds BlinkDL's tensor names behind the names other trainers and libraries use; renames and re-views, reads no data.

Families, with the code their names were taken from:
  wrappers       torch.compile, DeepSpeed and DataParallel put a prefix before every name
  fla            fla-org/flash-linear-attention fla/layers/rwkv7.py, also written by rwkv-rs/hf-adapter: linears are
                 (out, in), so LoRA factors are transposed; vectors are (C,); older files stack x_r .. x_g as x_x (6, C)
  transformers   huggingface/transformers models/rwkv (v4), BBuf/RWKV-World-HF-Tokenizer (v5, v6) and the RWKV-7 ports
                 (names of BlinkDL below a prefix; LoRA factors are bare, or linears named w1.weight)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from torch import Tensor

from exporter.formats.stored import Stored
from runtimes.errors import BadCheckpoint

View = Callable[[Tensor], Tensor]

WRAPPERS = re.compile(r"^(?:module\.|_forward_module\.)+|_orig_mod\.")

FLA = re.compile(r"model\.layers\.\d+\.attn\.(?:w_lora|r_k)\b")
TRANSFORMERS = re.compile(r"(?:rwkv7?|model)\.blocks\.\d+\.")

FLA_OUTSIDE = {"model.embeddings": "emb", "model.norm": "ln_out", "lm_head": "head"}
FLA_BLOCK = {"pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2"}
FLA_LINEAR = {"r_proj": "receptance", "k_proj": "key", "v_proj": "value", "o_proj": "output", "g_norm": "ln_x"}
FLA_LORA = {"0.weight": "1", "2.weight": "2", "2.bias": "0"}
FLA_STACK = "rwkvag"  # rows of x_x

SPELLINGS = (
    (r"^(?:rwkv7?|model)\.", ""),
    (r"^embeddings\.", "emb."),
    (r"^(blocks\.\d+)\.pre_ln\.", r"\1.ln0."),
    (r"^(blocks\.\d+)\.attention\.", r"\1.att."),
    (r"^(blocks\.\d+)\.feed_forward\.", r"\1.ffn."),
    (r"\.time_mix_(k|v|r|g)(?:ey|alue|eceptance|ate)$", r".time_mix_\1"),
)
LORA_LINEAR = re.compile(r"(blocks\.\d+\.att\.[wavg][12])\.weight")


def blinkdl(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors by BlinkDL name; names of no known family stay as they are. Raises BadCheckpoint."""
    tensors = _collect((WRAPPERS.sub("", name), stored) for name, stored in tensors.items())
    if any(FLA.match(name) for name in tensors):
        return _collect(pair for name, stored in tensors.items() for pair in _from_fla(name, stored))
    if any(TRANSFORMERS.match(name) for name in tensors):
        return _collect(_from_transformers(name, stored) for name, stored in tensors.items())
    return tensors


def _collect(pairs: Iterator[tuple[str, Stored]]) -> dict[str, Stored]:
    result: dict[str, Stored] = {}
    for name, stored in pairs:
        if name in result:
            raise BadCheckpoint(f"two tensors of the checkpoint are both {name}", hint="save one model alone")
        result[name] = stored
    return result


def _from_transformers(name: str, stored: Stored) -> tuple[str, Stored]:
    for pattern, spelling in SPELLINGS:
        name = re.sub(pattern, spelling, name)
    linear = LORA_LINEAR.fullmatch(name)
    return (linear[1], stored.through(_transposed)) if linear else (name, stored)


def _from_fla(name: str, stored: Stored) -> Iterator[tuple[str, Stored]]:
    module, _, kind = name.rpartition(".")
    if module in FLA_OUTSIDE:
        yield f"{FLA_OUTSIDE[module]}.{kind}", stored
        return
    match = re.fullmatch(r"model\.layers\.(\d+)\.(\w+)\.(.+)", name)
    if not match:
        raise _unknown(name)
    block, part, rest = f"blocks.{match[1]}", match[2], match[3]
    if part in FLA_BLOCK:
        yield f"{block}.{FLA_BLOCK[part]}.{rest}", stored
    elif part == "ffn":
        yield f"{block}.ffn.{rest}", stored.through(_vector) if rest == "x_k" else stored
    elif part == "attn" and rest == "x_x":
        for row, letter in enumerate(FLA_STACK):
            yield f"{block}.att.x_{letter}", stored.through(partial(_row, row=row))
    elif part == "attn":
        own, view = _from_fla_attention(name, rest)
        yield f"{block}.att.{own}", stored.through(view)
    else:
        raise _unknown(name)


def _from_fla_attention(name: str, rest: str) -> tuple[str, View]:
    module, _, kind = rest.partition(".")
    if module in FLA_LINEAR:
        return f"{FLA_LINEAR[module]}.{kind}", _same
    lora = re.fullmatch(r"([wavg])_lora\.lora\.(.+)", rest)
    if lora and lora[2] in FLA_LORA:
        return lora[1] + FLA_LORA[lora[2]], _vector if lora[2] == "2.bias" else _transposed
    if rest == "r_k":
        return rest, _same
    if re.fullmatch(r"x_[rwkvag]|k_k|k_a", rest):
        return rest, _vector
    raise _unknown(name)


def _unknown(name: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{name} is not a tensor of RWKV-7 as flash-linear-attention names them",
        hint="hybrid models with attention layers have no fixed-size state and cannot be exported",
    )


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.t()


def _vector(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, 1, -1)


def _row(tensor: Tensor, row: int) -> Tensor:
    return tensor[row].reshape(1, 1, -1)
