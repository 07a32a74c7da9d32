"""Every reader of outside bytes, given changed ones, reads them or refuses them in one sentence and soon.

tests/fuzz does the same for hours, guided by coverage; what that found is in test_hardening_found.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtimes.mil import protobuf
from tests.fuzz import oracle
from tests.fuzz.oracle import Reader
from tests.requirements import require

pytestmark = pytest.mark.slow

NEEDS_COREML = ("lint_program", "mil_package", "mil_program", "mil_weights")
TEXTS = ("", "../x", "/x", "C:\\x", "a\0b", "\x1b[2J", "\ud800")
ODD = (None, True, -1, 0, 2**62, 10**400, 1.5, float("nan"), float("inf"), [], {}, [[]], {"": None}, *TEXTS)
MANY = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

Opened = Callable[[str], tuple[Reader, Path, list[bytes]]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A reader, the folder it works in, and inputs that it can read."""

    @cache
    def once(name: str) -> tuple[Reader, Path, list[bytes]]:
        if name in NEEDS_COREML:
            require("coreml", None if protobuf.generated_files() else "coremltools is not installed")
        reader, folder = oracle.load(name), tmp_path_factory.mktemp(name)
        return reader, folder, list(reader.seeds(folder))

    return once


@pytest.mark.parametrize("name", oracle.names())
def test_at_least_one_input_can_be_read(opened: Opened, name: str) -> None:
    reader, folder, seeds = opened(name)
    said = [reader.judge(seed, folder) for seed in seeds]
    if name != "pte_program":  # whose programs are none of Core ML's, which is asked for last
        assert None in said, said


@pytest.mark.parametrize("name", oracle.names())
def test_changed_bytes_are_read_or_refused(opened: Opened, name: str) -> None:
    reader, folder, seeds = opened(name)

    @MANY
    @given(st.data())
    def changed(data: st.DataObject) -> None:
        content = bytearray(data.draw(st.sampled_from(seeds)))
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(content)))
            removed = data.draw(st.sampled_from([0, 1, 1, 4, len(content)]))
            content[start : start + removed] = data.draw(
                st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8])
            )
        reader.judge(bytes(content), folder)

    changed()


def documents() -> list[str]:
    """Readers of one JSON document."""
    return ["manifest", "results", "sensitivity", "mil_package", "tokenizer"]


@pytest.mark.parametrize("name", documents())
def test_an_odd_value_anywhere_in_a_document_is_read_or_refused(opened: Opened, name: str) -> None:
    reader, folder, seeds = opened(name)

    @MANY
    @given(st.data())
    def changed(data: st.DataObject) -> None:
        document = json.loads(data.draw(st.sampled_from(seeds)))
        places = list(_places(document))
        container, key = data.draw(st.sampled_from(places))
        container[key] = data.draw(st.sampled_from(ODD))
        reader.judge(json.dumps(document).encode(), folder)

    changed()


def _places(document: Any) -> Any:
    """Every value of a document, as its container and its key or index."""
    for key in document if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from _places(document[key])
