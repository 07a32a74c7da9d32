"""Which constants of an ML Program are matrices that an export keeps, by the names that the converter gave them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from exporter import keep
from exporter.mil import identifier
from exporter.passes.mil_compress import Matrix
from exporter.passes.mil_pieces import Piece
from runtimes.errors import WrongCall


def held(options: Mapping[str, str], piece: Piece) -> tuple[str, ...]:
    """Identifiers of the matrices to keep, as the piece itself counts its blocks."""
    matrices = [name for name, made in piece.named_parameters() if made.dim() > 1]
    return tuple(identifier(name) for name in matrices if keep.holds(options, piece.in_step(name)))


def without(found: Sequence[Matrix], kept: Sequence[str]) -> list[Matrix]:
    """The matrices but those to keep; raises WrongCall where the converter has given one of these another name."""
    left = list(found)
    for name in kept:
        own = re.compile(rf"(^|_){name}(s?_|$)")  # a head in parts is "head_weights_0"
        others = [matrix for matrix in left if not own.search(matrix.name)]
        if len(others) == len(left) and name.endswith("_weight"):
            raise WrongCall(
                f"option keep: Core ML's converter hides what is called {name}",
                hint="name the other matrices of its block one by one",
            )
        left = others
    return left
