"""Where an ExecuTorch step spends its time: its event tracer's dump, read call by call; it judges nothing.

Events nest: the method, in it calls of operators and of delegates, in those the kernels that a delegate tells of.
XNNPACK cuts the ends of its kernels to whole microseconds, so that one short kernel may show as 0; sums are right.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtimes.errors import Missing
from runtimes.profile import Event, Profile, Side, summarise

Names = Mapping[tuple[int, int], str]
"""What an instruction calls, by the numbers of its chain and itself."""

METHOD, OPERATOR, DELEGATE = "Method::execute", "OPERATOR_CALL", "DELEGATE_CALL"
NUMBER = re.compile(r" #\d+$")
"""XNNPACK counts the kernels of a kind: "Fully Connected (NC, F32) GEMM #47"."""


def read(program: Any, names: Names, seconds: Sequence[float]) -> Profile:
    """The profile of a traced program's last steps.

    program: executorch's ExecuTorchProgram, loaded with enable_etdump
    names:   of the method that steps; seconds: wall time of each of the steps

    Raises Missing where this ExecuTorch was built without its event tracer.
    """
    if not program.has_etdump():
        raise Missing("no profile: this executorch was built without its event tracer")
    traces = [execution(events, names) for events in _executions(program)[-len(seconds) :]]
    return summarise(traces, seconds, around="inputs and outputs")


def _executions(program: Any) -> list[list[Any]]:
    """The profile events of every execution so far."""
    from executorch.devtools.etdump.serialize import deserialize_from_etdump_flatcc

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.etdp"
        program.write_etdump_result_to_file(str(path))
        dump = deserialize_from_etdump_flatcc(path.read_bytes())
    blocks = [[event.profile_event for event in block.events if event.profile_event] for block in dump.run_data]
    return [events for events in blocks if any(event.name == METHOD for event in events)]


def execution(events: Sequence[Any], names: Names) -> list[Event]:
    """One execution as calls that do not overlap; what no call accounts for is overhead, of a delegate or the method.

    events: executorch.devtools.etdump.schema_flatcc.ProfileEvent
    """
    found, left = [], _total(event for event in events if event.name == METHOD)
    for event in events:
        if event.name == OPERATOR:
            found.append(Event(names[_instruction(event)], "", Side.RUNTIME, _ms(event)))
        elif event.name == DELEGATE:
            inside = [each for each in events if _instruction(each) == _instruction(event) and _is_kernel(each)]
            found += _delegate(names[_instruction(event)], _ms(event), inside)
        if event.name in (OPERATOR, DELEGATE):
            left -= _ms(event)
    return [*found, Event("between calls, profiling included", "", Side.OVERHEAD, max(0.0, left))]


def _delegate(unit: str, ms: float, kernels: Sequence[Any]) -> list[Event]:
    """One call of a delegate; many say nothing of their kernels."""
    if not kernels:
        return [Event("the whole call", unit, Side.DELEGATE, ms)]
    around = Event(
        "around the delegate's kernels, profiling included", unit, Side.OVERHEAD, max(0.0, ms - _total(kernels))
    )
    return [*(Event(_kind(kernel), unit, Side.DELEGATE, _ms(kernel)) for kernel in kernels), around]


def _instruction(event: Any) -> tuple[int, int]:
    return event.chain_index, event.instruction_id


def _is_kernel(event: Any) -> bool:
    return event.delegate_debug_id_str is not None or event.delegate_debug_id_int >= 0


def _kind(event: Any) -> str:
    """The kernel's name without its number."""
    return NUMBER.sub("", event.delegate_debug_id_str or f"kernel {event.delegate_debug_id_int}")


def _total(events: Iterable[Any]) -> float:
    return sum(_ms(event) for event in events)


def _ms(event: Any) -> float:
    return float(event.end_time - event.start_time) / 1e6
