"""One ONNX graph for any number of tokens: it equals fixed graphs, and is loaded, and holds its weights, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

import runtimes
from exporter.contract import Spelling
from exporter.model import open_model
from exporter.passes.onnx_join import open_recurrences
from runtimes import manifest
from runtimes.backends import ort
from tests.conftest import Exports

pytestmark = pytest.mark.slow

SIZES = (3, 8)
LENGTHS = (1, 2, 3, 5, 8, 9, 19)


@pytest.fixture(scope="module", params=["4", "5.2", "6", "7"])
def pair(request: pytest.FixtureRequest, exports: Exports) -> tuple[Path, Path]:
    """The same model as one graph, and as a graph for one token."""
    return exports(request.param, "onnx-cpu", prefill=SIZES), exports(request.param, "onnx-cpu")


@pytest.mark.parametrize("length", LENGTHS)
def test_any_number_of_tokens_gives_what_their_steps_give(pair: tuple[Path, Path], length: int) -> None:
    joined, single = (runtimes.open_session(folder) for folder in pair)
    tokens = np.random.default_rng(length).integers(0, 101, length + 2).tolist()
    start = single.initial_state()
    for token in tokens[:2]:
        start = single.step(token, start).state
    expected = start
    for token in tokens[2:]:
        step = single.step(token, expected)
        expected = step.state
    got = joined.prefill(tokens[2:], joined.write_state(single.read_state(start)))
    np.testing.assert_allclose(got.logits, step.logits, rtol=0, atol=2e-5)
    for name, array in single.read_state(expected).items():
        np.testing.assert_allclose(joined.read_state(got.state)[name], array, rtol=0, atol=2e-5, err_msg=name)


def test_it_is_one_file_loaded_once(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = pair
    graphs = manifest.read(folder).graphs
    assert [graph.tokens for graph in graphs] == [1, *SIZES]
    assert {graph.file for graph in graphs} == {"model.onnx"}
    loads = []
    load = ort._load
    monkeypatch.setattr(ort, "_load", lambda *given: loads.append(given) or load(*given))
    runtimes.open_session(folder)
    assert len(loads) == 1


def test_blocks_share_the_forms_of_the_recurrence(pair: tuple[Path, Path]) -> None:
    model = onnx.load(pair[0] / "model.onnx", load_external_data=False)
    assert sorted(function.name for function in model.functions) == ["Recurrence1", "Recurrence3", "Recurrence8"]
    assert sum(node.op_type == "If" for node in model.graph.node) == 2
    onnx.checker.check_model(str(pair[0] / "model.onnx"))


def calls(folder: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each call that a prompt of `length` takes."""
    seen: list[int] = []
    runner = ort._runner

    def watched(*given: Any) -> Any:
        run = runner(*given)

        def count(tokens: Any, state: Any) -> Any:
            seen.append(len(tokens))
            return run(tokens, state)

        return count

    monkeypatch.setattr(ort, "_runner", watched)
    session = runtimes.open_session(folder)
    session.prefill([1] * length, session.initial_state())
    return seen


def test_a_prompt_takes_the_fewest_calls(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exports("7", "onnx-cpu", prefill=SIZES)
    assert [graph.up_to for graph in manifest.read(folder).graphs] == [False, True, True]
    assert calls(folder, 21, monkeypatch) == [8, 8, 5]


def test_versions_whose_state_decays_by_itself_take_whole_sizes(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exports("4", "onnx-cpu", prefill=SIZES)
    assert not any(graph.up_to for graph in manifest.read(folder).graphs)
    assert calls(folder, 21, monkeypatch) == [8, 8, 3, 1, 1]


def test_a_module_is_left_as_it_was(exports: Exports) -> None:
    model: nn.Module = open_model(exports.checkpoint("7")).build(Spelling())
    with open_recurrences(model):
        assert "forward" in vars(model.get_submodule("blocks.0.att.recurrence"))
    assert "forward" not in vars(model.get_submodule("blocks.0.att.recurrence"))
