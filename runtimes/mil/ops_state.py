"""Operations on state, as pure functions: the evaluator stores what write_state returns in the state's place.

Values are never changed in place, so reading a state needs no copy.
"""

# MIL documents its operations: docstrings here say only what is easily mistaken.
# ruff: noqa: D103

from __future__ import annotations

from runtimes.contract import Array


def read_state(input: Array) -> Array:
    return input


def write_state(input: Array, data: Array) -> Array:
    """`input` is the state that is replaced."""
    return data
