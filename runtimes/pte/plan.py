"""Which delegates and operators a .pte program calls, read from the mapped file; its weights stay on disk.

A program is a flatbuffer; field numbers are those of ExecuTorch's schema/program.fbs, which only ever appends fields.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtimes.errors import BadArtifact

IDENTIFIER, IDENTIFIER_AT = b"ET12", 4
PROGRAM_PLANS = 1
PLAN_NAME, PLAN_CHAINS, PLAN_OPERATORS, PLAN_DELEGATES = 0, 5, 6, 7
CHAIN_INSTRUCTIONS = 2
INSTRUCTION_KIND, INSTRUCTION_CALL = 0, 1
NAMED = {1: PLAN_OPERATORS, 2: PLAN_DELEGATES}  # kinds of instructions: what their calls are an index into
CALL_INDEX = 0
NAME = 0  # of an operator; the id of a delegate


def calls(path: Path) -> dict[str, Counter[str]]:
    """Method -> how often a step calls each delegate, and each operator that stays outside, by name.

    Raises BadArtifact for a file that is no program.
    """
    return {method: Counter(names.values()) for method, names in instructions(path).items()}


def instructions(path: Path) -> dict[str, dict[tuple[int, int], str]]:
    """Method -> what its instructions call, by the numbers of chain and instruction; raises as `calls`."""
    with path.open("rb") as file:
        if file.read(8)[IDENTIFIER_AT:] != IDENTIFIER:
            raise BadArtifact(f"{path} is not an ExecuTorch program", hint="export again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                root = Table(data, struct.unpack_from("<I", data)[0])
                return {plan.text(PLAN_NAME): dict(_called(plan)) for plan in root.tables(PROGRAM_PLANS)}
            except (struct.error, IndexError, UnicodeDecodeError) as error:
                raise BadArtifact(f"{path} is not an ExecuTorch program: {error}", hint="export again") from error


def _called(plan: Table) -> Iterator[tuple[tuple[int, int], str]]:
    names = {kind: [each.text(NAME) for each in plan.tables(field)] for kind, field in NAMED.items()}
    for chain_number, chain in enumerate(plan.tables(PLAN_CHAINS)):
        for number, instruction in enumerate(chain.tables(CHAIN_INSTRUCTIONS)):
            kind = instruction.number(INSTRUCTION_KIND, "<B")
            if kind in names:
                name = names[kind][instruction.table(INSTRUCTION_CALL).number(CALL_INDEX, "<i")]
                yield (chain_number, number), name


@dataclass(frozen=True)
class Table:
    """A flatbuffers table in `data`, at `start`; a field that is absent reads as 0, "" or nothing."""

    data: mmap.mmap
    start: int

    def number(self, field: int, kind: str) -> int:
        """A number of struct's `kind`."""
        at = self._field(field)
        return self._read(kind, at) if at else 0

    def table(self, field: int) -> Table:
        """The table a field points to."""
        return self._behind(self._field(field))

    def text(self, field: int) -> str:
        """UTF-8."""
        if not (at := self._field(field)):
            return ""
        start, count = self._vector(at)
        return self.data[start : start + count].decode()

    def tables(self, field: int) -> Iterator[Table]:
        """Those of a vector."""
        if at := self._field(field):
            start, count = self._vector(at)
            for index in range(count):
                yield self._behind(start + 4 * index)

    def _field(self, number: int) -> int:
        """Where a field lies, 0 where it is absent."""
        fields = self.start - self._read("<i", self.start)
        known = self._read("<H", fields)
        slot = 4 + 2 * number
        offset = self._read("<H", fields + slot) if slot < known else 0
        return offset and self.start + offset

    def _behind(self, at: int) -> Table:
        return Table(self.data, at + self._read("<I", at))

    def _vector(self, at: int) -> tuple[int, int]:
        """Where its elements begin, and how many they are."""
        start = at + self._read("<I", at)
        return start + 4, self._read("<I", start)

    def _read(self, kind: str, at: int) -> int:
        return int(struct.unpack_from(kind, self.data, at)[0])
