"""The tolerance table: what it holds, and the mistakes it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter import registry
from runtimes.errors import WrongCall
from validation.tolerances import TABLE, bound, load

ROW = '[row]\nmax_abs = 1.0\nkl = 1.0\ntop1 = 1.0\nstate_rel = 1.0\nreason = "test"\n'


def test_rows_are_as_published_and_each_has_a_reason() -> None:
    single, half = bound("fp32"), bound("fp16")
    assert (single.max_abs, single.top1) == (5e-5, 1)
    assert (half.max_abs, half.kl, half.top1) == (5e-2, 1e-3, 1)
    assert (single.rounds, half.rounds) == (False, True)
    assert all(len(row.reason) > 20 for row in load(TABLE).values())


def test_every_target_names_a_row() -> None:
    named = {row for target in registry.targets().values() for row in target.precisions.values()}
    assert named
    assert named <= set(load(TABLE))


def test_unknown_row_is_refused_with_a_suggestion() -> None:
    with pytest.raises(WrongCall, match="unknown tolerance 'fp61'") as caught:
        bound("fp61")
    assert "did you mean 'fp16'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ROW + "max_abs_error = 1.0\n", "unknown key row.max_abs_error"),
        (ROW + 'name = "other"\n', "unknown key row.name"),
        (ROW.replace("kl = 1.0\n", ""), "missing key row.kl"),
        (ROW.replace("kl = 1.0", 'kl = "small"'), "row.kl is str 'small', expected float"),
        (ROW.replace("max_abs = 1.0", "max_abs = 0.0"), "must be positive"),
        (ROW.replace("max_abs = 1.0", "max_abs = nan"), "must be positive"),
        (ROW.replace("top1 = 1.0", "top1 = 1.5"), r"top1 in \(0, 1\]"),
        (ROW + 'itself = "raw"\n', "row.itself is 'raw', which is no row"),
        (ROW + 'kernel = "raw"\n', "row.kernel is 'raw', which is no row"),
        (ROW + "text_kl = 0.0\n", "text_kl must be positive, or left out"),
        (ROW + "text_kl = nan\n", "text_kl must be positive, or left out"),
        (ROW.replace('"test"', '" "'), "row.reason is empty"),
        ("row = 1", "row is not a table"),
        ("[row", "table.toml: "),
    ],
)
def test_mistakes_in_the_table_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "table.toml"
    path.write_text(text)
    with pytest.raises(WrongCall, match=sentence):
        load(path)
