"""Which known trap explains a wrong result: each is tried by computing what the reference would give if it were so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, fx

from validation.localise import damage
from validation.localise.bank import largest, stacked, turned
from validation.localise.case import Blame, Case
from validation.localise.catalogue import causes
from validation.localise.reference import kind

HALF_LARGEST = 65504.0
NPUS = ("htp", "rknn", "ane", "ethos-u")
UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    name: getattr(torch, name)
    for name in ("exp", "sigmoid", "tanh", "relu", "neg", "square", "sqrt", "rsqrt", "reciprocal", "log", "abs")
}
BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    name: getattr(torch, name) for name in ("add", "sub", "mul", "div", "maximum", "minimum")
}
EPSILONS = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 64e-5, 1e-3)
NARROW = (torch.float16, torch.bfloat16)
DECAYS = ("exp", "sigmoid", "rsub")
"""What a decay comes from."""


class Seen(NamedTuple):
    """What was seen where a trap explains the case; where that is known, the value that is wrong, and whose it is."""

    text: str
    values: Sequence[Tensor] | None = None
    node: fx.Node | None = None


def explain(case: Case) -> Blame:
    """The first trap that explains the case, and what is to blame then."""
    for name, look in LOOKS.items():
        if seen := look(case):
            return Blame(replace(causes()[name], detail=seen.text), case.giver(seen.values), seen.node or case.node)
    return Blame(causes()["unknown"], None, case.node)


def finite(values: Sequence[Tensor]) -> bool:
    """Whether there is neither infinity nor NaN."""
    return all(bool(value.isfinite().all()) for value in values)


def _square_overflow(case: Case) -> Seen | None:
    if finite(case.match.found):
        return None
    if (result := largest(stacked(case.match.wanted))) > HALF_LARGEST:
        return Seen(f"the result should be {result:.4g}")
    for node in _floating(case):
        reach = largest(stacked(case.value(node)))
        if reach > HALF_LARGEST:
            return Seen(f"{node.name} reaches {reach:.4g}", [value.half().float() for value in case.value(node)])
        if reach * reach > HALF_LARGEST:
            return Seen(f"{node.name} reaches {reach:.4g}, its square {reach * reach:.3g}")
    return None


def _eps_underflow(case: Case) -> Seen | None:
    if finite(case.match.found):
        return None
    bad = [~value.isfinite().all(-1) for value in case.match.found]
    for node in _floating(case):
        zeros = [(value == 0).all(-1) for value in case.value(node)]
        if all(map(torch.equal, bad, zeros)):
            return Seen(f"{node.name} has a vector of zeros")
    return None


def _other_epsilon(case: Case) -> Seen | None:
    for node in case.suspects:
        for place, value in enumerate(node.args):
            if not isinstance(value, float) or not 0 < value < 1e-2:
                continue
            tried = {}
            for eps in EPSILONS:
                arguments = [*node.args[:place], eps, *node.args[place + 1 :]]
                tried[eps] = case.off(node, case.rerun(node, {}, arguments))
            eps = min(tried, key=lambda each: tried[each])
            if eps != value and case.is_it(tried[eps]):
                return Seen(f"{node.name} with {eps:g} in place of {value:g}")
    return None


def _decay_rounded_to_one(case: Case) -> Seen | None:
    for node in [case.node, *_floating(case)]:
        wanted = case.value(node)
        for dtype in NARROW:
            narrow = [value.to(dtype).float() for value in wanted]
            ones = stacked(narrow) == 1
            below = ones & (stacked(wanted) < 1)
            if kind(_origin(node)) in DECAYS and below.any() and case.explained_by(node, narrow):
                largest_one = stacked(wanted)[below].max()
                text = f"{int(below.sum())} of {ones.size} are 1; the largest of these should be {largest_one:.7g}"
                return Seen(text, narrow)
    return None


def _rank_3_state(case: Case) -> Seen | None:
    if not case.flat or not any(npu in case.place for npu in NPUS):
        return None
    return Seen(f"{', '.join(f'{op.kind} {op.name}' for op in case.flat[:2])}, which a processor computes rightly")


def _transposed(case: Case) -> Seen | None:
    for node in [*case.suspects, *case.before]:
        values = case.value(node)
        other = turned(values) or ([value.mT for value in values] if values[0].dim() == 2 else None)
        if other and values[0].shape == other[0].shape and case.explained_by(node, other):
            return Seen(f"{_called(case, node)} is taken or given as its transpose", other, node)
    return None


def _swapped_operands(case: Case) -> Seen | None:
    for node in case.suspects:
        tensors = [at for at, argument in enumerate(node.args) if isinstance(argument, fx.Node)]
        if len(tensors) != 2 or kind(node) == "linear":
            continue
        arguments = list(node.args)
        one, other = tensors
        arguments[one], arguments[other] = arguments[other], arguments[one]
        try:
            values = case.rerun(node, {}, arguments)
        except RuntimeError:  # shapes that do not fit the other way round
            continue
        if case.explained_by(node, values):
            return Seen(f"{node.name} is {kind(node)}({node.args[other]}, {node.args[one]})", values, node)
    return None


def _sign(case: Case) -> Seen | None:
    for node in [*case.suspects, *_floating(case)]:
        negated = [-value for value in case.value(node)]
        if case.explained_by(node, negated):
            return Seen(f"{_called(case, node)} is negated", negated, node)
    return None


def _missing_operation(case: Case) -> Seen | None:
    for node in [*case.suspects, *_floating(case)]:
        left_out = _origin(node)
        for source in left_out.all_input_nodes:
            values = case.value(source)
            if values[0].numel() == case.value(node)[0].numel() and case.explained_by(node, values):
                return Seen(f"{kind(left_out)} ({left_out.name}) is left out", None, left_out)
    return None


def _wrong_operand(case: Case) -> Seen | None:
    if case.match.name is None:
        for name, values in case.known():
            if case.explained_by(case.node, values):
                return Seen(f"{name} is returned in its place")
    for node in [each for each in case.before if each.op != "get_attr" and case.seen(each)]:
        wanted = case.value(node)
        for name, values in case.known():
            if name != node.name and values[0].numel() == wanted[0].numel() and case.explained_by(node, values):
                return Seen(f"{name} is taken where {_called(case, node)} is wanted")
    return None


def _wrong_weights(case: Case) -> Seen | None:
    stored = case.step.stored
    for node in [each for each in case.before if each.op == "get_attr"]:
        for name, other in case.step.weights.items():
            alike = other.shape == case.value(node)[0].shape and name != node.name
            if alike and case.explained_by(node, [other] * len(case.tape.tokens)):
                return Seen(f"{stored[name]} is taken for {stored[node.name]}")
        if text := damage.found(case, node):
            return Seen(text)
    return None


def _other_operation(case: Case) -> Seen | None:
    tables: Mapping[int, Mapping[str, Callable[..., Tensor]]] = {1: UNARY, 2: BINARY}
    for node in case.suspects:
        given = [case.value(source) for source in node.all_input_nodes]
        table = tables.get(len(given), {})
        for name, function in table.items():
            if name == kind(node):
                continue
            try:
                values = [function(*each) for each in zip(*given, strict=True)]
            except RuntimeError:  # shapes that do not fit together
                continue
            if case.explained_by(node, values):
                return Seen(f"{name} in place of {kind(node)} ({node.name})", values, node)
    return None


def _rounded(dtype: torch.dtype) -> Callable[[Case], Seen | None]:
    def look(case: Case) -> Seen | None:
        for node in [case.node, *_floating(case)]:
            narrow = [value.to(dtype).float() for value in case.value(node)]
            if case.explained_by(node, narrow):
                return Seen(f"{_called(case, node)} has the numbers of {str(dtype).removeprefix('torch.')}", narrow)
        return None

    return look


def _floating(case: Case) -> Iterator[fx.Node]:
    """What the operation takes that is no parameter."""
    for node in case.before:
        values = case.value(node)
        if node.op != "get_attr" and isinstance(values[0], Tensor) and values[0].dtype.is_floating_point:
            yield node


def _origin(node: fx.Node) -> fx.Node:
    """The operation whose numbers these are in another shape."""
    while kind(node) in ("reshape", "view", "unsqueeze"):
        node = node.all_input_nodes[0]
    return node


def _called(case: Case, node: fx.Node) -> str:
    """A state or a parameter by its own name, an operation by its node's."""
    states = dict(zip(case.step.inputs[1:], case.step.state_names(), strict=True))
    return case.step.stored.get(node.name) or states.get(node.name) or node.name


LOOKS: Mapping[str, Callable[[Case], Seen | None]] = {
    "eps-underflow": _eps_underflow,
    "other-epsilon": _other_epsilon,
    "decay-rounded-to-one": _decay_rounded_to_one,
    "transposed": _transposed,
    "swapped-operands": _swapped_operands,
    "sign": _sign,
    "missing-operation": _missing_operation,
    "wrong-operand": _wrong_operand,
    "wrong-weights": _wrong_weights,
    "square-overflow": _square_overflow,
    "other-operation": _other_operation,
    "rounded-to-float16": _rounded(torch.float16),
    "rounded-to-bfloat16": _rounded(torch.bfloat16),
    "rank-3-state": _rank_3_state,
}
