"""Recognising RWKV versions: each is found by its own file, other models are refused with a reason."""

import sys
from pathlib import Path

import pytest
import torch

from exporter import models, versions
from runtimes.errors import BadCheckpoint, WrongCall

NEW = """
from exporter.models.v7 import build, dimensions, layout, spec
VERSIONS = ("31",)
def matches(names): return "31" if "blocks.0.att.new" in names else None
"""
V5 = ("blocks.0.att.time_decay", "blocks.0.att.ln_x.weight")
KNOWN = tuple(versions.by_version())


def names(version: str) -> dict[str, None]:
    """The tensor names of a one-block model."""
    file = versions.load(version)
    return dict.fromkeys(file.layout(version, file.dimensions(version, layers=1, width=64, head_size=64, vocab=8)))


def refusal(*tensors: str) -> BadCheckpoint:
    with pytest.raises(BadCheckpoint) as caught:
        versions.identify(dict.fromkeys(tensors))
    return caught.value


@pytest.mark.parametrize("version", KNOWN)
def test_each_version_is_found_by_its_own_file(version):
    file, found = versions.identify(names(version))

    assert found == version and version in file.VERSIONS


# The keys that tell versions apart, as listed by RWKV-LM's own loaders.
@pytest.mark.parametrize(
    ("version", "keys"),
    [
        ("4", ["blocks.0.att.time_first", "blocks.0.att.time_decay"]),
        ("5.0", [*V5, "blocks.0.att.time_first"]),
        ("5.1", [*V5, "blocks.0.att.time_first", "blocks.0.att.gate.weight"]),
        ("5.2", [*V5, "blocks.0.att.time_faaaa", "blocks.0.att.gate.weight"]),
        ("6", [*V5, "blocks.0.att.time_faaaa", "blocks.0.att.gate.weight", "blocks.0.att.time_maa_x"]),
        ("7", ["blocks.0.att.r_k", "blocks.0.att.ln_x.weight"]),
        ("7a", ["blocks.0.att.r_k", "blocks.0.att.ln_x.weight", "blocks.0.ffn.s_emb.weight"]),
    ],
)
def test_versions_are_told_apart_by_their_keys(version, keys):
    assert versions.identify(dict.fromkeys(keys))[1] == version


@pytest.mark.parametrize("key", ["blocks.0.qkv.qq.weight", "blocks.3.qkv.k_emb.weight", "blocks.0.qkv.k1"])
def test_rwkv_7b_is_refused_for_its_growing_cache(key):
    error = refusal(*names("7a"), key)

    assert "cache that grows with the text" in error.message and key in error.message
    assert "7a" in error.hint


@pytest.mark.parametrize("key", ["blocks.0.rosa.rosa_qkv.emb", "rosa1.emb0", "emb_rosa.emb.weight"])
def test_rwkv_8_is_refused_for_its_suffix_automaton(key):
    error = refusal("emb.weight", "blocks.0.ffn.key.weight", key)

    assert "suffix automaton, which is neither a tensor operation nor a fixed-size state" in error.message
    assert key in error.message


def test_the_rwkv_8_preview_is_not_taken_for_rwkv_7():
    assert "RWKV-8 preview" in refusal(*names("7"), "blocks.0.ffn.enn.weight").message


def test_lora_adapters_are_refused():
    assert "merge it into its base model" in refusal("blocks.0.att.key.lora_A", "blocks.0.att.key.lora_B").message


def test_other_models_are_refused_with_a_few_of_their_names():
    error = refusal("model.norm.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight", "z")

    assert error.message == (
        "this is not an RWKV checkpoint: "
        "it holds lm_head.weight, model.layers.0.self_attn.q_proj.weight, model.norm.weight"
    )
    assert error.hint == f"supported are RWKV versions {', '.join(KNOWN)}"


def test_unknown_blocks_are_called_an_unknown_version():
    assert "no RWKV version known here: it holds blocks.0.att.time_warp" in refusal("blocks.0.att.time_warp").message


@pytest.mark.parametrize(("version", "name"), [("6", "time_faaaa"), ("7", "r_k"), ("7a", "r_k")])
def test_heads_that_do_not_make_up_the_width_are_refused(version, name):
    file = versions.load(version)
    layout = file.layout(version, file.dimensions(version, layers=1, width=96, head_size=32, vocab=8))
    weights = {tensor: torch.empty(entry.shape, device="meta") for tensor, entry in layout.items()}
    weights[f"blocks.0.att.{name}"] = torch.empty(2, 40, device="meta")  # 96 // 40 is 2

    with pytest.raises(BadCheckpoint, match=f"{name} has 2 heads of 40, which do not make up the width 96"):
        file.spec(version, weights, 64e-5)


def test_a_new_file_is_found_by_being_there_and_asked_first(tmp_path, monkeypatch):
    (tmp_path / "v31_of_this_test.py").write_text(NEW)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])

    file, version = versions.identify(names("7") | {"blocks.0.att.new": None})

    assert version == "31" and Path(file.__file__).parent == tmp_path
    assert tuple(versions.by_version()) == (*KNOWN, "31")  # in the order of numbers, not of letters


def test_a_version_file_without_versions_is_named(tmp_path, monkeypatch):
    (tmp_path / "v9_misspelt.py").write_text('VERSION = ("9",)\n')
    (tmp_path / "helpers_of_this_test.py").write_text("")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])

    with pytest.raises(TypeError, match=r"v9_misspelt\.py has no VERSIONS"):
        versions.by_version()


@pytest.mark.parametrize(
    ("ours", "says"),
    [
        (('return "31"', 'return "7"'), r"VERSIONS \('31',\) matches '7', which is none of them"),
        (('VERSIONS = ("31",)', 'VERSIONS = ("7",)'), r"v7\.py and .*v31_copied\.py both have version '7'"),
    ],
)
def test_a_file_copied_from_an_older_version_and_not_renamed_throughout_is_told_so(tmp_path, monkeypatch, ours, says):
    (tmp_path / "v31_copied.py").write_text(NEW.replace(*ours))
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    sys.modules.pop("exporter.models.v31_copied", None)

    with pytest.raises(TypeError, match=says):
        versions.identify({"blocks.0.att.new": None})


def test_unknown_version_strings_get_a_suggestion():
    with pytest.raises(WrongCall, match="unknown RWKV version '5'") as caught:
        versions.load("5")
    assert "5.2" in caught.value.hint
