"""Hugging Face folders: weights written under the names of other libraries come back under BlinkDL's, bit for bit."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from exporter import versions
from exporter.checkpoint import open_checkpoint
from runtimes.errors import BadCheckpoint

C, F, V, H = 8, 24, 11, 2  # width, ffn width, vocabulary, heads: all different, so that no transposition is hidden
RANKS = {"w": 3, "a": 5, "v": 6, "g": 7}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(torch.bfloat16)


def norms(*names: str) -> dict[str, torch.Tensor]:
    return {f"{name}.{kind}": random(C) for name in names for kind in ("weight", "bias")}


def linears(scope: str, *names: str) -> dict[str, torch.Tensor]:
    return {f"{scope}.{name}.weight": random(C, C) for name in names}


def ends() -> dict[str, torch.Tensor]:
    return {"emb.weight": random(V, C), "head.weight": random(V, C)} | norms("blocks.0.ln0", "ln_out")


def rwkv7() -> dict[str, torch.Tensor]:
    """Two blocks of RWKV-7 as BlinkDL saves them; block 0 without v0, v1, v2."""
    weights = ends()
    for block in ("blocks.0", "blocks.1"):
        att, ffn = f"{block}.att", f"{block}.ffn"
        weights |= norms(f"{block}.ln1", f"{block}.ln2", f"{att}.ln_x")
        weights |= linears(att, "receptance", "key", "value", "output")
        weights |= {
            f"{att}.{name}": random(1, 1, C) for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a")
        }
        weights |= {f"{att}.r_k": random(H, C // H), f"{ffn}.x_k": random(1, 1, C)}
        weights |= {f"{ffn}.key.weight": random(F, C), f"{ffn}.value.weight": random(C, F)}
        for letter, rank in RANKS.items():
            if letter == "v" and block == "blocks.0":
                continue
            weights |= {f"{att}.{letter}1": random(C, rank), f"{att}.{letter}2": random(rank, C)}
            if letter != "g":
                weights[f"{att}.{letter}0"] = random(1, 1, C)
    return weights


def rwkv4() -> dict[str, torch.Tensor]:
    """Two blocks of RWKV-4 as BlinkDL saves them."""
    weights = ends()
    for block in ("blocks.0", "blocks.1"):
        att, ffn = f"{block}.att", f"{block}.ffn"
        weights |= norms(f"{block}.ln1", f"{block}.ln2")
        weights |= linears(att, "receptance", "key", "value", "output") | linears(ffn, "receptance")
        weights |= {f"{att}.{name}": random(1, 1, C) for name in ("time_mix_k", "time_mix_v", "time_mix_r")}
        weights |= {f"{ffn}.{name}": random(1, 1, C) for name in ("time_mix_k", "time_mix_r")}
        weights |= {f"{att}.time_decay": random(C), f"{att}.time_first": random(C)}
        weights |= {f"{ffn}.key.weight": random(F, C), f"{ffn}.value.weight": random(C, F)}
    return weights


def as_fla(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of fla.models.RWKV7ForCausalLM: every tensor named and shaped as its modules declare them."""
    declared = {
        "model.embeddings.weight": weights["emb.weight"],
        "model.norm.weight": weights["ln_out.weight"],
        "model.norm.bias": weights["ln_out.bias"],
        "lm_head.weight": weights["head.weight"],
        "model.layers.0.pre_norm.weight": weights["blocks.0.ln0.weight"],
        "model.layers.0.pre_norm.bias": weights["blocks.0.ln0.bias"],
    }
    for i in (0, 1):
        layer, block = f"model.layers.{i}", f"blocks.{i}"
        for kind in ("weight", "bias"):
            declared[f"{layer}.attn_norm.{kind}"] = weights[f"{block}.ln1.{kind}"]
            declared[f"{layer}.ffn_norm.{kind}"] = weights[f"{block}.ln2.{kind}"]
            declared[f"{layer}.attn.g_norm.{kind}"] = weights[f"{block}.att.ln_x.{kind}"]
        declared[f"{layer}.attn.r_proj.weight"] = weights[f"{block}.att.receptance.weight"]
        declared[f"{layer}.attn.k_proj.weight"] = weights[f"{block}.att.key.weight"]
        declared[f"{layer}.attn.v_proj.weight"] = weights[f"{block}.att.value.weight"]
        declared[f"{layer}.attn.o_proj.weight"] = weights[f"{block}.att.output.weight"]
        for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g"):
            declared[f"{layer}.attn.{name}"] = weights[f"{block}.att.{name}"].view(1, 1, C)
        for name in ("k_k", "k_a"):
            declared[f"{layer}.attn.{name}"] = weights[f"{block}.att.{name}"].view(C)
        declared[f"{layer}.attn.r_k"] = weights[f"{block}.att.r_k"]
        for letter, rank in RANKS.items():
            if f"{block}.att.{letter}1" not in weights:
                continue
            down, up = torch.nn.Linear(C, rank).weight.shape, torch.nn.Linear(rank, C).weight.shape
            lora = f"{layer}.attn.{letter}_lora.lora"
            declared[f"{lora}.0.weight"] = weights[f"{block}.att.{letter}1"].mT.contiguous().view(down)
            declared[f"{lora}.2.weight"] = weights[f"{block}.att.{letter}2"].mT.contiguous().view(up)
            if letter != "g":
                declared[f"{lora}.2.bias"] = weights[f"{block}.att.{letter}0"].view(C)
        declared[f"{layer}.ffn.x_k"] = weights[f"{block}.ffn.x_k"].view(C)
        declared[f"{layer}.ffn.key.weight"] = weights[f"{block}.ffn.key.weight"]
        declared[f"{layer}.ffn.value.weight"] = weights[f"{block}.ffn.value.weight"]
    return declared


def as_first_fla(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As fla's first version, which kept the six mixes in one (6, C) tensor in the order r, w, k, v, a, g."""
    declared = as_fla(weights)
    for i in (0, 1):
        rows = [declared.pop(f"model.layers.{i}.attn.x_{letter}").view(C) for letter in "rwkvag"]
        declared[f"model.layers.{i}.attn.x_x"] = torch.stack(rows)
    return declared


def as_transformers_v4(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of transformers.RwkvForCausalLM."""
    long = {"time_mix_k": "time_mix_key", "time_mix_v": "time_mix_value", "time_mix_r": "time_mix_receptance"}
    parts = {"att": "attention", "ffn": "feed_forward", "ln0": "pre_ln", "emb": "embeddings"}
    declared = {}
    for name, tensor in weights.items():
        words = [long.get(word, parts.get(word, word)) for word in name.split(".")]
        declared[".".join(words if words[0] == "head" else ["rwkv", *words])] = tensor
    return declared


def prefixed(prefix: str, embedding: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """RWKV-7 in transformers: BlinkDL's names below a prefix, the head outside it."""
    renamed = {name.replace("emb.", f"{embedding}."): tensor for name, tensor in weights.items()}
    return {name if name.startswith("head.") else f"{prefix}.{name}": tensor for name, tensor in renamed.items()}


def with_lora_linears(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The port whose LoRA factors are linears: att.w1.weight of shape (rank, C)."""
    declared = prefixed("model", "embeddings", weights)
    for name in [name for name in declared if re.search(r"att\.[wavg][12]$", name)]:
        declared[f"{name}.weight"] = declared.pop(name).mT.contiguous()
    return declared


LAYOUTS = {
    "fla": (rwkv7, as_fla),
    "first fla": (rwkv7, as_first_fla),
    "transformers rwkv": (rwkv4, as_transformers_v4),
    "transformers rwkv7": (rwkv7, lambda weights: prefixed("rwkv7", "emb", weights)),
    "transformers model": (rwkv7, lambda weights: prefixed("model", "emb", weights)),
    "lora linears": (rwkv7, with_lora_linears),
    "BlinkDL": (rwkv4, dict),
}


def folder(path: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_and_orientation_come_back(tmp_path, layout):
    build, rename = LAYOUTS[layout]
    weights = build()

    checkpoint = open_checkpoint(folder(tmp_path / "rwkv model", rename(weights)))

    assert set(checkpoint) == set(weights)
    for name, expected in weights.items():
        assert checkpoint[name].dtype == expected.dtype
        assert torch.equal(checkpoint[name], expected), name
    assert checkpoint.format == "huggingface" and checkpoint.name == "rwkv-model"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_version_is_recognised(tmp_path, layout):
    build, rename = LAYOUTS[layout]

    checkpoint = open_checkpoint(folder(tmp_path / "m", rename(build())))

    file, version = versions.identify(checkpoint)

    assert version == ("4" if build is rwkv4 else "7")
    assert file.spec(version, checkpoint, 64e-5).layers == 2


def test_names_are_translated_in_single_files_too(tmp_path):
    weights = rwkv7()
    torch.save(as_fla(weights), tmp_path / "pytorch_model.bin")

    checkpoint = open_checkpoint(tmp_path / "pytorch_model.bin")

    assert torch.equal(checkpoint["blocks.1.att.v2"], weights["blocks.1.att.v2"])


def sharded(path: Path, suffix: str) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    tensors = as_transformers_v4(rwkv4())
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    weight_map = {name: f"{stem}-{1 + index % 3:05}-of-00003.{suffix}" for index, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == shard}
        (save_file if suffix == "safetensors" else torch.save)(part, path / shard)
    (path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_one_mapping(tmp_path, suffix):
    path = sharded(tmp_path / "m", suffix)

    checkpoint = open_checkpoint(path)

    assert set(checkpoint) == set(rwkv4())
    assert {file.name for file in checkpoint.files} == {file.name for file in path.iterdir()}
    assert checkpoint.bytes == sum(file.stat().st_size for file in path.iterdir())


def test_the_hash_of_a_folder_depends_on_every_file(tmp_path):
    path = sharded(tmp_path / "m", "safetensors")
    before = open_checkpoint(path).sha256()
    assert open_checkpoint(path).sha256() == before

    (path / "config.json").write_text('{"hidden_size": 8}')

    assert open_checkpoint(path).sha256() != before


def test_a_missing_shard_is_named(tmp_path):
    path = sharded(tmp_path / "m", "safetensors")
    (path / "model-00002-of-00003.safetensors").unlink()

    with pytest.raises(BadCheckpoint, match=r"lacks model-00002-of-00003\.safetensors, one of 3 weight files"):
        open_checkpoint(path)


def test_a_shard_without_its_tensor_is_noticed(tmp_path):
    path = sharded(tmp_path / "m", "safetensors")
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["rwkv.blocks.7.ln1.weight"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))

    with pytest.raises(BadCheckpoint, match=r"lacks rwkv\.blocks\.7\.ln1\.weight, which its index names"):
        open_checkpoint(path)


def test_an_index_cannot_leave_its_folder(tmp_path):
    path = sharded(tmp_path / "m", "safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../secret.safetensors"}}))

    with pytest.raises(BadCheckpoint, match="names a file outside its folder"):
        open_checkpoint(path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_the_embedding(tmp_path, tied):
    weights = rwkv7()
    declared = as_fla(weights)
    del declared["lm_head.weight"]

    checkpoint = open_checkpoint(folder(tmp_path / "m", declared, tie_word_embeddings=tied))

    assert ("head.weight" in checkpoint) == tied
    if tied:
        assert torch.equal(checkpoint["head.weight"], weights["emb.weight"])


def test_snapshots_of_the_hub_cache_are_named_by_repository(tmp_path):
    path = tmp_path / "models--fla-hub--rwkv7-0.1B-g1" / "snapshots" / "d2d414f"
    path.parent.mkdir(parents=True)

    checkpoint = open_checkpoint(folder(path, as_fla(rwkv7())))

    assert checkpoint.name == checkpoint.source().file == "rwkv7-0.1B-g1"


def test_hybrids_with_attention_layers_are_refused(tmp_path):
    declared = as_fla(rwkv7()) | {"model.layers.1.attn.q_proj.weight": random(C, C)}

    with pytest.raises(BadCheckpoint, match=r"model\.layers\.1\.attn\.q_proj\.weight is not a tensor of RWKV-7"):
        open_checkpoint(folder(tmp_path / "m", declared))


def test_folders_of_other_models_are_refused_by_name(tmp_path):
    llama = {"model.layers.0.self_attn.q_proj.weight": random(C, C), "lm_head.weight": random(V, C)}

    with pytest.raises(
        BadCheckpoint, match=r"model_type='llama'.* not a known RWKV folder: it holds lm_head\.weight, model"
    ):
        open_checkpoint(folder(tmp_path / "m", llama, model_type="llama"))


def test_folders_that_are_not_model_folders_are_refused(tmp_path):
    torch.save(rwkv4(), tmp_path / "rwkv-4.pth")

    with pytest.raises(BadCheckpoint, match=r"is a folder without config\.json") as caught:
        open_checkpoint(tmp_path)
    assert "rwkv-4.pth" in caught.value.hint

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"has config\.json but no weights"):
        open_checkpoint(tmp_path)

    (tmp_path / "config.json").write_text("<html>")
    with pytest.raises(BadCheckpoint, match=r"config\.json is not JSON"):
        open_checkpoint(tmp_path)
