"""Layer norm over channels as one operation, in torch and in Core ML; written out, its squares overflow float16."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "rwkv_export::channel_norm"


@torch.library.custom_op(NAME, mutates_args=())
def channel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Over the second axis of x (1, C, 1, T); torch has layer norms over the last axes only."""
    return F.layer_norm(x.movedim(1, 3), weight.shape, weight, bias, eps).movedim(3, 1).contiguous()


@channel_norm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


def teach_coremltools() -> None:
    """Make the operation known to coremltools' converter, which keeps such operations by name, for this process."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op

    def channel_norm(context: Any, node: Any) -> None:
        *tensors, epsilon = node.inputs
        x, gamma, beta = (context[name] for name in tensors)
        made = Builder.layer_norm(x=x, axes=[1], gamma=gamma, beta=beta, epsilon=epsilon, name=node.name)
        context.add(made)

    register_torch_op(channel_norm, torch_alias=[NAME], override=True)
