"""What lowering is spared comes back afterwards, also when it fails."""

from __future__ import annotations

import copy
import gc

import pytest
from torch.fx.traceback import NodeSource

from exporter.unburdened import unburdened


def test_histories_are_shared_and_no_garbage_is_collected_within_the_block_only() -> None:
    source = NodeSource(None)
    with pytest.raises(ValueError, match="failed"), unburdened():
        assert copy.deepcopy([source])[0] is source
        assert not gc.isenabled()
        raise ValueError("failed")
    assert copy.deepcopy([source])[0] is not source
    assert gc.isenabled()
