"""Opening checkpoint files: tensors are those saved and stay on disk, and every bad file has its own sentence."""

import hashlib
import os
import pickle
import random
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from exporter.checkpoint import check_finite, open_checkpoint
from runtimes.errors import BadCheckpoint, Missing, RwkvExportError
from tests.memory import mapped

TENSORS = {
    "emb.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4).to(torch.bfloat16),
    "blocks.0.att.time_first": torch.tensor([0.5, -2.0], dtype=torch.float16),
    "head.weight": torch.linspace(-1, 1, 6).reshape(2, 3),
}


def save(path: Path, tensors: object = TENSORS, **options: object) -> Path:
    """Write with the library of the suffix."""
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, **options)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        open_checkpoint(path)
    assert str(path) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_tensors_come_back_bit_for_bit(tmp_path, suffix):
    checkpoint = open_checkpoint(save(tmp_path / f"RWKV x070 (0.1B){suffix}"))

    assert set(checkpoint) == set(TENSORS) and len(checkpoint) == 3
    for name, expected in TENSORS.items():
        assert torch.equal(checkpoint[name], expected)
        assert checkpoint[name].dtype == expected.dtype
    assert checkpoint.format == suffix[1:]
    assert checkpoint.name == "RWKV-x070-0.1B"
    assert "missing" not in checkpoint
    with pytest.raises(KeyError):
        checkpoint["missing"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_suffix_does_not_decide(tmp_path, suffix):
    misnamed = save(tmp_path / f"a{suffix}").rename(tmp_path / "a.bin")

    assert open_checkpoint(misnamed).format == suffix[1:]


def test_source_identifies_the_file(tmp_path):
    path = save(tmp_path / "model.v2.pth")
    content = path.read_bytes()

    source = open_checkpoint(str(path)).source()

    assert source.file == "model.v2.pth" and source.format == "pth"
    assert source.bytes == len(content)
    assert source.sha256 == hashlib.sha256(content).hexdigest()


def test_a_link_of_the_hub_cache_keeps_its_own_name(tmp_path):
    blob = save(tmp_path / "0f3a.pth")
    link = tmp_path / "RWKV-7.pth"
    link.symlink_to(blob)

    checkpoint = open_checkpoint(link)

    assert checkpoint.name == "RWKV-7" and checkpoint.source().file == "RWKV-7.pth"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="counts private memory the Linux way")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_tensors_stay_on_disk_however_often_they_are_read(tmp_path, suffix):
    def private_bytes() -> int:
        return int(re.search(r"Anonymous:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text())[1]) * 1024

    size = 32 << 20
    path = save(tmp_path / f"a{suffix}", {"w": torch.ones(size // 4)})
    before = private_bytes()

    checkpoint = open_checkpoint(path)
    held = [checkpoint["w"] for _ in range(4)]
    assert sum(int(tensor.sum()) for tensor in held) == size
    assert private_bytes() - before < size // 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory the Linux way")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_tensor_that_is_dropped_gives_its_memory_back(tmp_path, suffix):
    size = 32 << 20
    checkpoint = open_checkpoint(save(tmp_path / f"a{suffix}", {"w": torch.ones(size // 4)}))
    before = mapped()

    held = checkpoint["w"]
    assert int(held.sum()) == size // 4 and mapped() - before >= size
    del held
    assert mapped() - before < size // 4


def test_views_and_odd_shapes_are_read(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    odd = {
        "t": whole.t(),
        "part": whole[1:, 2:4],
        "same": whole,
        "one": whole[0, 5],
        "none": whole[:0],
        "flat": whole[2],
    }

    checkpoint = open_checkpoint(save(tmp_path / "a.pth", odd))

    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in odd.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_changes_once_it_is_open_is_refused(tmp_path, suffix):
    checkpoint = open_checkpoint(save(tmp_path / f"a{suffix}"))
    save(tmp_path / f"b{suffix}", {"emb.weight": torch.zeros(3)}).replace(tmp_path / f"a{suffix}")

    with pytest.raises(BadCheckpoint, match="has changed since it was opened"):
        checkpoint["emb.weight"]

    checkpoint = open_checkpoint(tmp_path / f"a{suffix}")
    os.utime(tmp_path / f"a{suffix}", (1, 1))  # as after a write in place
    with pytest.raises(BadCheckpoint, match="has changed since it was opened"):
        checkpoint["emb.weight"]

    (tmp_path / f"a{suffix}").unlink()
    with pytest.raises(Missing, match=r"cannot read .*: No such file"):
        checkpoint["emb.weight"]


def test_files_of_big_endian_machines_are_refused(tmp_path):
    little, big = save(tmp_path / "little.pth"), tmp_path / "big.pth"
    with zipfile.ZipFile(little) as source, zipfile.ZipFile(big, "w") as archive:
        for name in source.namelist():
            archive.writestr(name.replace("little/", "big/"), b"big" if "byteorder" in name else source.read(name))

    assert "was written on a big-endian machine" in refusal(big)


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "_orig_mod.", "_forward_module.module._orig_mod."])
def test_wrappers_of_trainers_are_stripped(tmp_path, prefix):
    wrapped = {prefix + name: tensor for name, tensor in TENSORS.items()}

    assert set(open_checkpoint(save(tmp_path / "a.pth", wrapped))) == set(TENSORS)


def test_blocks_compiled_one_by_one_are_unwrapped(tmp_path):
    wrapped = {"blocks.0._orig_mod.att.time_first": torch.zeros(2), "emb.weight": torch.zeros(2)}

    assert set(open_checkpoint(save(tmp_path / "a.pth", wrapped))) == {"blocks.0.att.time_first", "emb.weight"}


def test_two_models_in_one_file_are_refused(tmp_path):
    both = {"emb.weight": torch.zeros(2), "module.emb.weight": torch.ones(2)}

    with pytest.raises(BadCheckpoint, match=r"two tensors of the checkpoint are both emb\.weight"):
        open_checkpoint(save(tmp_path / "a.pth", both))


def test_parameters_and_ordered_dicts_are_tensor_dicts(tmp_path):
    saved = OrderedDict({"w": torch.nn.Parameter(torch.ones(2))})

    tensor = open_checkpoint(save(tmp_path / "a.pth", saved))["w"]

    assert type(tensor) is torch.Tensor and not tensor.requires_grad


def test_files_of_the_format_before_zip_are_read(tmp_path):
    checkpoint = open_checkpoint(save(tmp_path / "a.pth", _use_new_zipfile_serialization=False))

    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in TENSORS.items())


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_named_and_not_run(tmp_path, zipped):
    trace = tmp_path / "ran"
    content = {"emb.weight": torch.zeros(1), "x": Malicious(trace)}

    message = refusal(save(tmp_path / "a.pth", content, _use_new_zipfile_serialization=zipped))

    assert re.search(r"contains Python code \(global \w+\.system\), refused", message)
    assert not trace.exists()


def test_code_behind_another_pickle_protocol_is_not_run(tmp_path):
    trace = tmp_path / "ran"

    message = refusal(save(tmp_path / "a.pth", {"x": Malicious(trace)}, pickle_protocol=4))

    assert "without running code from it, refused" in message
    assert not trace.exists()


def test_a_bare_pickle_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"w": 1}))

    assert "is a Python pickle, which can run code" in refusal(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)

    assert "contains Python code (a TorchScript program), refused" in refusal(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "its dict is empty"),
        (torch.zeros(2), "holds a Tensor where a dict of named tensors is expected"),
        ([torch.zeros(2)], "holds a list where"),
        ({"state_dict": TENSORS, "epoch": 3}, "holds 'state_dict' (dict) where only named tensors are expected"),
        ({"emb.weight": torch.zeros(2), "epoch": 3}, "holds 'epoch' (int)"),
        ({0: torch.zeros(2)}, "holds 0 (Tensor)"),
        ({"w": torch.zeros(2, dtype=torch.int8)}, "w is stored as torch.int8, a quantised type"),
        ({"_strategy": "cuda fp16i8", "w": torch.zeros(2)}, "was converted by the rwkv package for cuda fp16i8"),
    ],
)
def test_what_is_not_a_dict_of_weights_is_refused(tmp_path, content, says):
    assert says in refusal(save(tmp_path / "a.pth", content))


def test_safetensors_without_tensors_or_with_quantised_ones_are_refused(tmp_path):
    assert "holds no tensors" in refusal(save(tmp_path / "empty.safetensors", {}))
    quantised = {"w": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    assert "w is stored as F8_E4M3, a quantised type" in refusal(save(tmp_path / "q.safetensors", quantised))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1])
def test_truncated_files_are_called_truncated(tmp_path, suffix, kept):
    path = save(tmp_path / f"a{suffix}", {"w": torch.randn(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])

    assert "truncated" in refusal(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty (0 bytes)"),
        (b"<!DOCTYPE html>\n<html>404</html>", "is a web page"),
        (b"\n\n  <html lang=en>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a git-lfs pointer"),
        (b"GGUF\x03\0\0\0" + bytes(64), "is a GGUF file"),
        (b"fmgg\x65\0\0\0" + bytes(64), "is a ggml file (rwkv.cpp)"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "is a PNG picture"),
        (b'{"error": "Repository not found"}', "is a JSON text"),
        (b"\x1f\x8b\x08" + bytes(64), "is gzip-compressed"),
        (b"hello world", "is neither a torch file nor safetensors: it starts with b'hello wo'"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, content, says):
    path = tmp_path / "model.pth"
    path.write_bytes(content)

    assert says in refusal(path)


def test_zip_archives_that_torch_did_not_write_are_refused(tmp_path):
    inner = save(tmp_path / "a.pth")
    outer, packed = tmp_path / "outer.zip", tmp_path / "packed.pth"
    with zipfile.ZipFile(outer, "w") as archive:
        archive.write(inner, "a.pth")
    with zipfile.ZipFile(inner) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))

    assert "is a zip archive but not a torch file: it holds a.pth" in refusal(outer)
    assert "was packed again with compression or a password" in refusal(packed)


@pytest.mark.parametrize("alignment", [b"64", b"0", b"1", None])
def test_files_that_were_packed_again_are_read_where_their_tensors_lie_now(tmp_path, alignment):
    weights = {f"blocks.{i}.ffn.key.weight": torch.randn(3 + i, 5) for i in range(4)}
    torch.save(weights, tmp_path / "once.pth")
    again = tmp_path / "again.pth"
    with zipfile.ZipFile(tmp_path / "once.pth") as source, zipfile.ZipFile(again, "w") as archive:
        for name in reversed(source.namelist()):
            aligned = name.endswith("/.storage_alignment")
            if not aligned or alignment:
                archive.writestr(name, alignment if aligned else source.read(name))

    read = open_checkpoint(again)
    assert list(read) == list(weights)
    assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_files_without_checksums_are_read(tmp_path):
    weights, whole = {"emb.weight": torch.randn(7, 5)}, torch.serialization.get_crc32_options()
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(weights, tmp_path / "model.pth")
    finally:
        torch.serialization.set_crc32_options(whole)

    assert torch.equal(open_checkpoint(tmp_path / "model.pth")["emb.weight"], weights["emb.weight"])


def test_encrypted_files_are_refused(tmp_path):
    content = bytearray(save(tmp_path / "a.pth").read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.pth").write_bytes(content)

    assert "was packed again with compression or a password" in refusal(tmp_path / "a.pth")


def test_a_missing_file_names_its_neighbours(tmp_path):
    save(tmp_path / "rwkv-7.pth")

    with pytest.raises(Missing) as caught:
        open_checkpoint(tmp_path / "rwkv-8.pth")

    assert caught.value.message == f"no such file: {tmp_path / 'rwkv-8.pth'}"
    assert "rwkv-7.pth" in caught.value.hint


def test_a_reference_to_the_hub_is_pointed_to_fetch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(Missing) as caught:
        open_checkpoint("BlinkDL/rwkv-7-world/a.pth")

    assert "rwkv-export fetch BlinkDL/rwkv-7-world/a.pth" in caught.value.hint


@pytest.mark.parametrize("kind", ["a.pth", "a.safetensors", "legacy.pth"])
def test_altered_bytes_never_end_in_a_traceback(tmp_path, kind):
    path = save(tmp_path / kind, **({"_use_new_zipfile_serialization": False} if kind == "legacy.pth" else {}))
    original, chance = path.read_bytes(), random.Random(kind)
    refused = 0
    for _ in range(150):
        altered = bytearray(original)
        for _ in range(chance.choice([1, 4])):
            altered[chance.randrange(len(altered))] = chance.randrange(256)
        path.write_bytes(altered)
        try:
            checkpoint = open_checkpoint(path)
        except RwkvExportError:
            refused += 1
        else:
            assert all(tensor.clone().shape == tensor.shape for tensor in checkpoint.values())
    assert refused > 0


def test_check_finite_counts():
    tensor = torch.zeros(96, 64)
    check_finite("blocks.0.att.key.weight", tensor)
    tensor[0, :3], tensor[5, 5] = float("nan"), float("-inf")

    with pytest.raises(BadCheckpoint, match=r"^blocks\.0\.att\.key\.weight holds 3 NaN and 1 Inf of 6144 values$"):
        check_finite("blocks.0.att.key.weight", tensor)
