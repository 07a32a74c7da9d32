"""What is inside a .pte program: methods, their instructions, and the delegates' own data; it runs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtimes.errors import BadArtifact


class Program:
    """A program file read into memory, its delegates' data included; raises BadArtifact for anything else."""

    def __init__(self, path: Path) -> None:
        from executorch.exir._serialize._program import deserialize_pte_binary

        try:
            self._file: Any = deserialize_pte_binary(path.read_bytes())
        except Exception as error:  # the parser raises whatever a broken flatbuffer leads it to
            raise BadArtifact(f"{path} is not an ExecuTorch program: {error}", hint="export again") from error
        self._path = path

    @contextmanager
    def intact(self) -> Iterator[None]:
        """Within the block, what an altered program lacks or has in the wrong place raises BadArtifact."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise BadArtifact(f"{self._path} is not an ExecuTorch program: {error!r}", hint="export again") from error

    def plan(self, method: str) -> Any:
        """The execution plan of a method: values, inputs, outputs, operators, delegates, chains."""
        with self.intact():
            for plan in self._file.program.execution_plan:
                if plan.name == method:
                    return plan
        raise BadArtifact(f"{self._path} has no method {method!r}", hint="export again")

    def calls(self, method: str) -> Counter[str]:
        """How often a step calls each delegate, and each operator that stays outside, by name."""
        plan, calls = self.plan(method), Counter[str]()
        with self.intact():
            for instruction in plan.chains[0].instructions:
                call = instruction.instr_args
                if hasattr(call, "delegate_index"):
                    calls[plan.delegates[call.delegate_index].id] += 1
                elif hasattr(call, "op_index"):
                    calls[plan.operators[call.op_index].name] += 1
        return calls

    def arguments(self, method: str, delegate: str) -> list[int]:
        """The numbers of the values that the one call which a method consists of passes, inputs first.

        Raises BadArtifact where the method does anything else than to call this delegate once.
        """
        calls, instructions = self.calls(method), self.plan(method).chains[0].instructions
        if calls != {delegate: 1} or len(instructions) != 1:
            steps = ", ".join(f"{count} x {name}" for name, count in calls.items())
            raise BadArtifact(
                f"method {method} is not one call of {delegate} but {steps or 'nothing that runs'}",
                hint="only programs that the delegate takes as a whole can be followed into it",
            )
        with self.intact():
            return list(instructions[0].instr_args.args)

    def blob(self, method: str, delegate: int = 0) -> bytes:
        """What a delegate's compiler wrote for its call number `delegate` of a method."""
        with self.intact():
            found = self.plan(method).delegates[delegate].processed
            return bytes(self._file.program.backend_delegate_data[found.index].data)

    def shared(self, key: str) -> bytes:
        """Data that delegates refer to by a key, because several methods have it in common; raises BadArtifact."""
        store = self._file.named_data
        with self.intact():
            if store is None or key not in store.pte_data:
                raise BadArtifact(f"{self._path} has no data called {key!r}", hint="export again")
            return bytes(store.buffers[store.pte_data[key].buffer_index])
