"""An error in two parts: kernels and quantising are told apart, judged apart, and shown wherever results are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_rnn import PLACE, Fault, session

from runtimes.contract import Array
from runtimes.session import ExplicitSession, Tensors
from rwkv_export import tables
from validation import outcome
from validation.hops import with_hops
from validation.outcome import Bound, Identity, Machine, Outcome, Parity, Results
from validation.parity import check
from validation.reports import html, markdown
from validation.trace import Trace, choose_tokens, record

TOKENS = choose_tokens(8, vocab=31, seed=0)
WIDE = Bound("wide", 2.0, 1.0, 1.0, 1.0, "other weights", rounds=True)
TIGHT = Bound("tight", 1e-2, 1e-3, 1.0, 1e-2, "kernels only", rounds=True)


@pytest.fixture(scope="module")
def golden() -> Trace:
    return record(session("float64"), TOKENS)


def shifted(by: float) -> Fault:
    """Logits that are off by as much as that, each by another share of it."""

    def fault(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        return logits + np.linspace(-by, by, logits.size, dtype=np.float32).reshape(logits.shape), new

    return fault


def quantised() -> ExplicitSession:
    return session(fault=shifted(0.3))


def judged(device: ExplicitSession, golden: Trace) -> Parity:
    identity = Identity("folder", "small", "4", "fake", "int8", PLACE, "")
    row = check(device, golden, WIDE, identity, graph_sizes=())
    return with_hops(row, device, quantised(), golden, place="exact:cpu", bound=TIGHT)


def test_kernel_and_quality_are_separate_numbers(golden: Trace) -> None:
    row = judged(session(fault=shifted(0.303)), golden)
    assert (row.outcome, row.reasons) == (Outcome.PASS, ())
    assert row.hops is not None
    assert (row.hops.place, row.hops.bound) == ("exact:cpu", TIGHT)
    assert row.hops.kernel.worst == pytest.approx(3e-3, rel=1e-2)
    assert row.hops.kernel_local.worst == pytest.approx(3e-3, rel=1e-2)
    assert row.hops.quality.worst == pytest.approx(0.3, rel=1e-2)
    assert row.free is not None
    assert row.free.worst == pytest.approx(0.303, rel=1e-2)


def test_a_kernel_that_is_off_fails_although_the_checkpoint_is_within_bounds(golden: Trace) -> None:
    row = judged(session(fault=shifted(0.4)), golden)
    assert row.outcome is Outcome.FAIL
    assert row.reasons[0].startswith("against exact:cpu, local: max|Δlogit| 0.1")


def test_a_device_that_agrees_to_the_last_digit_is_no_device(golden: Trace) -> None:
    row = judged(quantised(), golden)
    assert row.outcome is Outcome.SUSPICIOUS
    assert "every logit equals the reference's exactly, which tight arithmetic cannot do" in row.reasons[0]


def test_what_failed_against_the_checkpoint_stays_failed(golden: Trace) -> None:
    row = judged(session(fault=shifted(3.0)), golden)
    assert row.outcome is Outcome.FAIL
    assert row.reasons[0].startswith("local: ")
    assert row.hops is not None
    device, exact = session(fault=shifted(3.0)), session(fault=shifted(3.003))
    assert with_hops(row, device, exact, golden, place="exact:cpu", bound=TIGHT).outcome is Outcome.FAIL


def test_a_graph_that_gives_no_numbers_where_it_is_exact_fails(golden: Trace) -> None:
    def silent(calls: int, logits: Array, new: Tensors) -> tuple[Array, Tensors]:
        return logits * np.nan, new

    row = replace(judged(quantised(), golden), outcome=Outcome.PASS, reasons=(), hops=None)
    found = with_hops(row, quantised(), session(fault=silent), golden, place="exact:cpu", bound=TIGHT)
    assert found.outcome is Outcome.FAIL
    assert found.reasons[0].startswith("on exact:cpu: ")
    assert found.hops is None


def test_both_hops_are_in_every_report(golden: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine("Linux", "Test CPU", 1, 1, "", "3.11", {})
    results = Results(outcome.SCHEMA, machine, (judged(session(fault=shifted(0.303)), golden),))
    tables.print_results(results)
    outcome.write(results, tmp_path / "results.json")
    assert outcome.read(tmp_path / "results.json") == results
    for text in (capsys.readouterr().out, markdown.render(results), html.render([results])):
        for part in ("exact:cpu", "quality KL", "0.003", "0.3"):
            assert part in text, part
