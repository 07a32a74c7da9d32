"""The number of threads a user asks for reaches the runtime, and anything but a number is refused."""

from __future__ import annotations

import pytest

import runtimes
from runtimes import threads
from runtimes.errors import WrongCall
from tests.conftest import Exports


def test_unset_or_zero_leaves_the_choice_to_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    assert threads.requested() == 0
    monkeypatch.setenv(threads.VARIABLE, "0")
    assert threads.requested() == 0


@pytest.mark.parametrize("text", ["two", "-1", "1.5", ""])
def test_what_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(threads.VARIABLE, text)
    with pytest.raises(WrongCall, match="expected a number of threads"):
        threads.requested()


def test_onnxruntime_is_given_the_number(monkeypatch: pytest.MonkeyPatch, exports: Exports) -> None:
    import onnxruntime

    seen = []

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, value: str) -> None:
            seen.append(self.intra_op_num_threads)
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setenv(threads.VARIABLE, "3")
    runtimes.open_session(exports("7", "onnx-cpu"))
    assert set(seen) == {3}
