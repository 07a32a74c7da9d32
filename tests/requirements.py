"""Tools that some tests need beside the Python packages: skipped without them, unless this machine promised them."""

from __future__ import annotations

import os

import pytest

VARIABLE = "RWKV_EXPORT_REQUIRE"


def require(name: str, missing: str | None) -> None:
    """Skip the test where `missing` says what lacks; fail it where the variable lists `name`, as in "arm64,qnn"."""
    if missing is None:
        return
    if name in os.environ.get(VARIABLE, "").split(","):
        pytest.fail(f"{VARIABLE} asks for {name}, but {missing}")
    pytest.skip(missing)
