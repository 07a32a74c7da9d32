"""Which function computes which operation, by MIL name: the public functions of the ops_ files are the list."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType

from runtimes.mil import (
    ops_constexpr,
    ops_elementwise,
    ops_gather,
    ops_half_sums,
    ops_linear,
    ops_norm,
    ops_quantise,
    ops_reduce,
    ops_shape,
    ops_state,
)
from runtimes.mil.binding import Compute


def _functions(*modules: ModuleType) -> Mapping[str, Compute]:
    return {
        name: function
        for module in modules
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and name[0] != "_"
    }


ARITHMETIC = _functions(ops_elementwise, ops_reduce, ops_norm, ops_linear, ops_quantise)
"""They get float32 for float16, and their results are rounded to the declared type."""

HALF_SUMS = _functions(ops_half_sums)
"""What may stand in for some of those where their result is float16."""

MOVES = _functions(ops_shape, ops_gather, ops_state)
"""They get values as they are; their results have the declared type."""

CONSTEXPR = _functions(ops_constexpr)
"""They turn constants into constants when a program is loaded; their results are rounded to the declared type."""
