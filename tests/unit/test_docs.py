"""The guides against the code: examples run, keys and bounds are those of the code, links lead somewhere."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import runpy
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import exporter
from exporter import models, registry, targets
from exporter.checkpoint import open_checkpoint
from exporter.models.primitives import masking
from exporter.synth import synth
from runtimes import backends, manifest
from runtimes import registry as places
from runtimes.manifest import Manifest
from runtimes.schema import from_plain
from tests.parity.stepping import StepModule
from validation import validate
from validation.outcome import Outcome, Parity
from validation.tolerances import TABLE, load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *sorted(DOCS.rglob("*.md"))]
SMALL = {"layers": 1, "width": 32, "head_size": 16, "vocab": 33}


def examples(page: str) -> dict[str, str]:
    """The files a guide shows: a path in bold, then the file as one Python block."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^\*\*`([\w/.]+)`\*\*\n\n```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The examples of both guides as if they lay in their folders; yields the folder they really lie in."""
    shown = examples("adding-a-version.md") | examples("adding-a-target.md")
    packages: tuple[ModuleType, ...] = (models, targets, backends)
    folders = {package.__name__.replace(".", "/"): package for package in packages}
    names = []
    for path, code in shown.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(code, encoding="utf-8")
        if package := folders.get(str(Path(path).parent)):
            assert not (ROOT / path).exists(), "an example must not hide a real file"
            names.append(f"{package.__name__}.{Path(path).stem}")
    for folder, package in folders.items():
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / folder)])
    importlib.invalidate_caches()
    registry._files.cache_clear()
    yield tmp_path
    registry._files.cache_clear()
    for name in names:
        sys.modules.pop(name, None)


def validated(folder: Path, *on: str) -> Parity:
    (row,) = validate([folder], on=on, steps=16).parity
    return row


def test_the_guides_show_every_file_they_speak_of() -> None:
    assert list(examples("adding-a-version.md")) == ["exporter/models/v9.py", "tests/parity/test_v9.py"]
    assert list(examples("adding-a-target.md")) == ["exporter/targets/toy.py", "runtimes/backends/onnxref.py"]


def test_the_example_version_agrees_with_its_formulas(installed: Path) -> None:
    test = runpy.run_path(str(installed / "tests" / "parity" / "test_v9.py"))
    test["test_16_steps_agree_with_the_formulas"](installed)


def test_the_example_version_is_exported_with_a_prefill_graph_and_passes(installed: Path) -> None:
    checkpoint = synth("9", **SMALL, out=installed / "toy.pth")
    (folder,) = exporter.export(checkpoint, targets=["torch"], prefill=[5], out=installed)
    assert manifest.read(folder).model.version == "9"
    row = validated(folder)
    assert (row.outcome, row.reasons) == (Outcome.PASS, ())
    assert set(row.prefill) == {"1", "5", "uneven"}


def test_the_example_version_takes_no_notice_of_tokens_that_a_mask_leaves_out(installed: Path) -> None:
    made = StepModule(open_checkpoint(synth("9", **SMALL, out=installed / "toy.pth")), "9")
    tokens = torch.tensor([3, 1, 4, 1, 5, 0, 0, 0])
    with torch.inference_mode():
        wanted = made.module(tokens[:5], *made.initial())
        with masking((torch.arange(8) < 5).float()):
            found = made.module(tokens, *made.initial())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_both_examples_work_together_and_the_example_runtime_says_what_it_is(installed: Path) -> None:
    checkpoint = synth("9", **SMALL, out=installed / "toy.pth")
    (folder,) = exporter.export(checkpoint, targets=["onnx-toy"], out=installed)
    row = validated(folder)
    assert (row.outcome, row.reasons) == (Outcome.PASS, ())
    assert (row.identity.observed, row.identity.evidence) == ("onnxref:cpu", "interpreted")
    assert row.free and row.free.worst > 0
    assert validated(folder, "ort:cpu").outcome is Outcome.PASS  # another engine, the same file
    assert str(ROOT).encode() not in (folder / "step.onnx").read_bytes()


def test_the_example_target_takes_a_version_it_does_not_know(installed: Path) -> None:
    checkpoint = synth("7", **SMALL, out=installed / "seven.pth")
    (folder,) = exporter.export(checkpoint, targets=["onnx-toy"], out=installed)
    row = validated(folder)
    assert (row.outcome, row.reasons) == (Outcome.PASS, ())


def test_the_example_tolerance_is_a_row_of_the_table() -> None:
    (row,) = re.findall(r"```toml\n(.*?)\n```", (DOCS / "adding-a-target.md").read_text(encoding="utf-8"), re.DOTALL)
    assert f"\n{row}\n" in TABLE.read_text(encoding="utf-8")


def test_the_page_on_parity_has_the_bounds_of_the_table() -> None:
    text = (DOCS / "parity.md").read_text(encoding="utf-8")
    section = text[text.index("## Bounds") : text.index("## Quality on text")]
    shown = {}
    for line in re.findall(r"^\| `.*$", section, re.MULTILINE):
        name, *numbers, text, zero = (cell.strip(" `") for cell in line.strip("|").split("|"))
        limit = None if text == "–" else float(text)  # noqa: RUF001  an en dash, as in every table
        shown[name] = ([float(number) for number in numbers], limit, zero == "is suspicious")
    rows = load(TABLE).items()
    assert shown == {
        name: ([row.max_abs, row.kl, row.top1, row.state_rel], row.text_kl, row.rounds) for name, row in rows
    }


def test_the_page_on_parity_names_every_outcome_and_every_place() -> None:
    text = (DOCS / "parity.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|.*\| \d \|$", text, re.MULTILINE)) == {outcome.value for outcome in Outcome}
    every = {f"{name}:{device}" for name in places.names() for device in places.load(name).DEVICES}
    assert {place for place in every if f"`{place}`" not in text} == set()


def keys(hint: Any, path: str = "") -> Iterator[str]:
    """Every key below a type, as the page on the manifest writes them: `graphs[].tokens`."""
    if typing.get_origin(hint) is types.UnionType:
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if path and not dataclasses.is_dataclass(hint) and typing.get_origin(hint) is tuple:
        yield path
        inner = typing.get_args(hint)[0]
        yield from (key for key in keys(inner, f"{path}[]") if key != f"{path}[]")
        return
    if path:
        yield path
    if dataclasses.is_dataclass(hint):
        for name, own in typing.get_type_hints(hint).items():
            yield from keys(own, f"{path}.{name}" if path else name)


def test_the_page_on_the_manifest_explains_every_key_and_no_other() -> None:
    text = (DOCS / "manifest.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    shown = [key for cell in cells for key in re.findall(r"`([^`]+)`", cell)]
    assert sorted(shown) == sorted(keys(Manifest))


def test_the_example_manifest_is_one_of_this_schema() -> None:
    (text,) = re.findall(r"```json\n(.*?)```", (DOCS / "manifest.md").read_text(encoding="utf-8"), re.DOTALL)
    document = from_plain(Manifest, json.loads(text))
    assert document.schema == manifest.SCHEMA
    assert document.target.name in registry.targets()


def test_the_readme_has_every_target_with_its_precisions_and_options() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Targets") : text.index("## What a pass means")].replace("\\|", "/")
    shown: dict[str, tuple[set[str], set[str]]] = {}
    for row in re.findall(r"^\| `\w.*$", section, re.MULTILINE):
        names, _, precisions, options, _ = row.strip("|").split("|")
        those = {precision.split()[0] for precision in precisions.split(",")}
        choices = {option.partition("=")[0] for option in re.findall(r"`(.+?)`", options)}
        shown |= dict.fromkeys(re.findall(r"`(.+?)`", names), (those, choices))
    assert shown == {
        name: (set(target.precisions), {option.name for option in target.options})
        for name, target in registry.targets().items()
    }


def anchors(page: Path) -> set[str]:
    """What a link to a heading of a page is called on GitHub."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    broken = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize(
    ("page", "name", "script"),
    [
        ("README.md", "matrix", "matrix.py --by-target"),
        ("README.md", "choice", "choice_table.py"),
        ("docs/targets.md", "targets", "matrix.py"),
        ("benchmarks/README.md", "peers", "peers_table.py"),
        ("benchmarks/README.md", "gpu", "gpu_table.py"),
    ],
)
def test_a_table_of_figures_is_that_of_a_recorded_run(page: str, name: str, script: str) -> None:
    readme = (ROOT / page).read_text(encoding="utf-8")
    source, shown = re.search(rf"<!-- {name}: (\S+) -->\n(.*?)\n<!-- end of {name} -->", readme, re.DOTALL).groups()
    command = [sys.executable, *script.split(), ROOT / source]
    printed = subprocess.run(
        command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True
    ).stdout.strip()
    assert shown == printed
    assert printed.count("\n") >= 4
