"""Random checkpoints: complete for every version, equal for equal arguments, finite, and never half-written."""

import errno
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from exporter import synth as module
from exporter import versions
from exporter.checkpoint import check_finite, open_checkpoint
from exporter.contract import Dimensions, Entry
from exporter.progress import silent
from exporter.synth import SIZES, synth
from runtimes.errors import Missing, WrongCall
from tests.memory import forget_peak, peak
from tests.models import VERSIONS

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def make(path: Path, version: str = "7", **options):
    small = {"layers": 2, "width": 32, "head_size": 16, "vocab": 17}
    return open_checkpoint(synth(version, **(small | options), out=path, progress=silent))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_of_every_version_is_recognised_and_complete(tmp_path, version, suffix):
    checkpoint = make(tmp_path / f"a{suffix}", version)

    file, found = versions.identify(checkpoint)

    spec = file.spec(found, checkpoint, 64e-5)
    assert found == version and checkpoint.format == suffix[1:]
    assert (spec.layers, spec.width, spec.vocab) == (2, 32, 17)
    assert spec.heads == (1 if version == "4" else 2)
    for name, tensor in checkpoint.items():
        check_finite(name, tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tensor_has_the_type_asked_for(tmp_path, dtype):
    checkpoint = make(tmp_path / "a.pth", dtype=dtype)

    assert {tensor.dtype for tensor in checkpoint.values()} == {DTYPES[dtype]}


def test_equal_arguments_give_equal_tensors_and_another_seed_others(tmp_path):
    one, same, other = (make(tmp_path / f"{i}.pth", seed=seed) for i, seed in enumerate([3, 3, 4]))

    assert all(torch.equal(one[name], same[name]) for name in one)
    drawn = "blocks.1.att.key.weight"
    assert not torch.equal(one[drawn], other[drawn])
    assert not torch.equal(one[drawn], one["blocks.0.att.key.weight"])


def test_a_tensor_does_not_depend_on_the_others(tmp_path):
    shallow, deep = make(tmp_path / "a.pth", layers=1), make(tmp_path / "b.pth", layers=3)

    assert torch.equal(shallow["blocks.0.att.receptance.weight"], deep["blocks.0.att.receptance.weight"])


def test_both_formats_hold_the_same_tensors(tmp_path):
    one, other = make(tmp_path / "a.pth"), make(tmp_path / "a.safetensors")

    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


# Width and depth of the checkpoints published as BlinkDL/rwkv-7-world.
@pytest.mark.parametrize(("size", "layers", "width"), [("0.1b", 12, 768), ("1.5b", 24, 2048), ("2.9b", 32, 2560)])
def test_sizes_are_the_published_ones(size, layers, width):
    assert SIZES[size] == (layers, width, 65536)


def test_0_1b_of_rwkv_7_has_as_many_parameters_as_the_published_one():
    # RWKV-x070-World-0.1B-v2.8: 191,034,624 with layer 0's unused v0, v1 and v2 left out.
    layout = module._layout("7", layers=12, width=768, head_size=64, vocab=65536)
    used = [
        entry
        for name, entry in layout.items()
        if not name.startswith(("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"))
    ]
    assert sum(torch.Size(entry.shape).numel() for entry in used) == 191_034_624


def test_optional_tensors_that_official_models_lack_are_left_out(tmp_path):
    checkpoint = make(tmp_path / "a.pth")

    assert "head.bias" not in checkpoint and "blocks.0.att.output.bias" not in checkpoint
    assert "blocks.0.ln0.weight" in checkpoint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"version": "8"}, "unknown RWKV version '8'"),
        ({"size": "3b"}, "unknown size '3b'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"width": 100, "head_size": 64}, "width 100 is not a multiple of the head size 64"),
        ({"layers": 0}, "layers is 0, expected 1 to 1024"),
        ({"layers": 10**8}, "layers is 100000000, expected 1 to 1024"),
        ({"vocab": -1}, "vocab is -1"),
        ({"head_size": 0}, "head size is 0"),
    ],
)
def test_impossible_models_are_refused_before_anything_is_written(tmp_path, options, says):
    with pytest.raises(WrongCall, match=says):
        synth(**({"version": "7"} | options), out=tmp_path / "a.pth", progress=silent)
    assert list(tmp_path.iterdir()) == []


def test_unknown_kinds_of_file_are_refused(tmp_path):
    with pytest.raises(WrongCall, match=r"cannot write a\.gguf: unknown kind of file"):
        synth("7", out=tmp_path / "a.gguf", progress=silent)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, suffix):
    path, drawn = tmp_path / f"a{suffix}", []
    make(path)
    before = path.read_bytes()

    def full_at_the_third(name, entry, seed):
        drawn.append(name)
        if len(drawn) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return torch.zeros(entry.shape)

    monkeypatch.setattr(module, "draw", full_at_the_third)
    with pytest.raises(Missing, match=f"cannot write .*a{suffix}: No space left on device$"):
        make(path, seed=1)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_torch_file_is_read_by_torch_in_every_way(tmp_path):
    checkpoint = make(tmp_path / "a.pth")

    for mmap in (True, False):
        read = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mmap)
        assert list(read) == list(checkpoint)
        assert all(torch.equal(read[name], checkpoint[name]) for name in read)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_safetensors_file_is_the_one_its_library_writes(tmp_path, dtype):
    checkpoint = make(tmp_path / "a.safetensors", dtype=dtype)

    save_file({name: tensor.clone() for name, tensor in checkpoint.items()}, tmp_path / "b.safetensors")

    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory the Linux way")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_memory_is_bounded_by_the_largest_tensor(tmp_path, suffix):
    largest = 4 * 512 * 512 * 4  # the feed-forward's, float32
    shape = {"width": 512, "vocab": 1024, "head_size": 64}
    make(tmp_path / f"warm{suffix}", layers=1, **shape)
    forget_peak()
    before = peak()

    synth("7", **shape, layers=12, out=tmp_path / f"a{suffix}")

    assert (tmp_path / f"a{suffix}").stat().st_size > 15 * largest
    assert peak() - before < 5 * largest


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(WrongCall, match=r"cannot write .*file/a\.pth: File exists"):
        make(tmp_path / "file" / "a.pth")


def test_progress_counts_every_parameter(tmp_path):
    counted, totals = [], []

    @contextmanager
    def counting(text, total=None):
        totals.append(total)
        yield counted.append

    path = synth("7", layers=1, width=16, head_size=16, vocab=3, out=tmp_path / "a.pth", progress=counting)

    parameters = sum(tensor.numel() for tensor in open_checkpoint(path).values())
    assert sum(counted) == parameters == totals[0]


def test_a_version_needs_only_dimensions_and_layout(tmp_path, monkeypatch):
    class Fake:
        def dimensions(self, version, *, layers, width, head_size, vocab):
            return Dimensions(layers, width, head_size, 3 * width, vocab)

        def layout(self, version, d):
            return {"w": Entry((d.ffn, d.vocab), lambda generator, shape: torch.rand(shape, generator=generator))}

    monkeypatch.setattr(versions, "load", lambda version: Fake())

    checkpoint = make(tmp_path / "a.pth", "fake", dtype="fp32")

    assert checkpoint["w"].shape == (96, 17)
    assert 0.4 < float(checkpoint["w"].mean()) < 0.6
