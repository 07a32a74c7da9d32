"""What recurrences share that solve many tokens at once: blocks, who follows whom in them, the chain over blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from exporter.models.primitives import mask_of, stack


class BlockRecurrence(nn.Module, ABC):
    """A recurrence that can step, and solve whole blocks of tokens whose inner work is one batch.

    Called with `given` tensors of T tokens, (T, ...) each, and then the state; returns y (T, ...) and the new state.
    A block of 1 is for those that solve any number of tokens at once.

    Under a mask, tokens that do not count come as zeros, and `solve` of those that `idle_zeros` is not true of is given
    the mask (T, 1, ...) too, after the other tensors of tokens.
    """

    idle_zeros = False  # whether a token whose tensors are all zero leaves the state as it was

    def __init__(self, *, given: int, block: int) -> None:
        super().__init__()
        self.given, self.block = given, block

    @abstractmethod
    def step(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """As a call, of one token."""

    @abstractmethod
    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """As a call, of several tokens: a multiple of `block`, or fewer than that; with a mask perhaps of one."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Any number of tokens: whole blocks first, then what is left over as a shorter block."""
        tokens, state = list(tensors[: self.given]), list(tensors[self.given :])
        length = tokens[0].shape[0]
        if length == 1:
            return self.step(*tensors)
        mask = mask_of(tokens[0])
        if mask is not None:
            tokens = [x * mask for x in tokens]
            if not self.idle_zeros:
                tokens.append(mask)
        whole = length // self.block * self.block
        if whole in (0, length):
            return self.solve(*tokens, *state)
        y, *state = self.solve(*(x[:whole] for x in tokens), *state)
        solve = self.step if length - whole == 1 and len(tokens) == self.given else self.solve
        rest, *state = solve(*(x[whole:] for x in tokens), *state)
        return torch.cat([y, rest], 0), *state


def blocked(x: Tensor, size: int) -> Tensor:
    """(T, H, N) -> (T / size, H, size, N)."""
    _, heads, width = x.shape
    return x.reshape(-1, size, heads, width).transpose(1, 2)


def unblocked(y: Tensor) -> Tensor:
    """(blocks, H, size, N) -> (T, H, N)."""
    _, heads, _, width = y.shape
    return y.transpose(1, 2).reshape(-1, heads, width)


def chain(state: Tensor, advance: Callable[[Tensor, int], Tensor], blocks: int) -> tuple[Tensor, Tensor]:
    """What runs in sequence: the state (1, ...) as every block finds it (blocks, ...), and as the last leaves it."""
    entering = []
    for block in range(blocks):
        entering.append(state)
        state = advance(state, block)
    return stack(entering), state


def positions(size: int, like: Tensor) -> Tensor:
    """0 to size - 1, on the device of `like`."""
    return torch.arange(size, device=like.device)


def runs(size: int, levels: int, like: Tensor) -> Tensor:
    """Which run of 1, 2, 4, ... tokens each token of a block is in, (levels, size)."""
    return positions(size, like) // 2 ** positions(levels, like)[:, None]


def joined(size: int, like: Tensor) -> Tensor:
    """1 where token t is in a run and s in the one before it, both halves of a larger run, (levels, t, s).

    Any s < t are so joined at one level exactly, the first of whose larger runs has both of them.
    """
    run = runs(size, (size - 1).bit_length(), like)
    t, s = run[:, :, None], run[:, None]
    return ((t == s + 1) & (t % 2 == 1)).to(like.dtype)


def between(size: int, like: Tensor) -> Tensor:
    """1 where a token's decay lies between t and a certain border, (2 + levels, t, token).

    The border is first the start of the block, with the tokens before t, and last its end, with those after t. In
    between, at the levels of `joined`, it is the one that two joined runs meet at: all that lies between a joined pair
    is then what their two rows have. Sums of rows are exact where a difference of two sums is not.
    """
    run = runs(size, (size - 1).bit_length() + 1, like)
    run = torch.cat([torch.ones_like(run[:1]), run], 0)
    t, token = positions(size, like)[:, None], positions(size, like)
    second = run[:, :, None] % 2 == 1
    side = (second & (token < t)) | (~second & (token > t))
    return (side & (run[:, :, None] == run[:, None])).to(like.dtype)


def before(size: int, like: Tensor) -> Tensor:
    """1 where s < t, (t, s)."""
    return torch.ones(size, size, dtype=like.dtype, device=like.device).tril(-1)


def identity(size: int, like: Tensor) -> Tensor:
    """(size, size)."""
    return torch.eye(size, dtype=like.dtype, device=like.device)


def inverse(strictly_lower: Tensor) -> Tensor:
    """(I - A)^-1, (..., size, size); what A has on and above its diagonal is not looked at.

    Halves are solved, then joined: [[P, 0], [-B, R]]^-1 = [[P^-1, 0], [R^-1 B P^-1, R^-1]]. Every number on the way is
    one of an inverse, where powers of A grow as binomials when a token is repeated, and cancel.
    """
    size = strictly_lower.shape[-1]
    if size == 1:
        return identity(size, strictly_lower).expand_as(strictly_lower)
    levels = joined(size, strictly_lower)
    solved = identity(size, strictly_lower) + strictly_lower * levels[0]
    for level in range(1, levels.shape[0]):
        solved = solved + solved @ (strictly_lower * levels[level]) @ solved
    return solved
