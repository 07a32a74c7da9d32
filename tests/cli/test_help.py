"""Help teaches with examples that parse, starts fast, and offers exactly what the functions behind it take."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from exporter import registry
from rwkv_export.help import flowing
from rwkv_export.main import app, run

from .conftest import Cli

ROOT = Path(__file__).parents[2]
GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)  # type: ignore[attr-defined]
HEAVY = {"torch", "coremltools", "onnx", "onnxruntime", "executorch", "numpy", "scipy", "matplotlib"}


def command(name: str) -> typer.core.TyperCommand:
    return GROUP.commands[name]  # type: ignore[attr-defined, no-any-return]


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_every_file_of_the_commands_folder_is_a_command() -> None:
    files = {path.stem for path in (ROOT / "rwkv_export" / "commands").glob("*.py")} - {"__init__"}
    assert set(COMMANDS) == files


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_names_its_options(cli: Cli, name: str) -> None:
    said = cli(name, "--help")
    assert said.code == 0
    for parameter in command(name).params:
        assert parameter.param_type_name == "argument" or parameter.opts[0] in plain(said.out)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_help_use_options_that_exist(name: str) -> None:
    help = inspect.cleandoc(command(name).help or "")
    examples = [line.strip() for line in help.partition("Examples:\n")[2].splitlines()]
    assert examples
    assert all(len(line) <= 76 for line in examples), "would wrap on a terminal of 80 columns"
    known = {option for parameter in command(name).params for option in parameter.opts}
    for line in examples:
        program, used, *words = shlex.split(re.split(r"[|]|&&", line)[0])
        assert (program, used) == ("rwkv-export", name)
        assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_fits_80_columns(cli: Cli, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = plain(cli(name, "--help").out).splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "\u2026" in line or "range>" in line or "<bool>" in line], "cut, or jargon"
    examples = [line[1:] for line in lines if line.startswith("   rwkv-export")]
    assert examples
    assert all(line.strip() in (command(name).help or "") for line in examples), "wrapped"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_in_one_line(name: str) -> None:
    first = inspect.cleandoc(command(name).help or "").split("\n\n")[0]
    assert len(first) <= 64


def test_paragraphs_flow_and_indented_lines_stay() -> None:
    text = "First.\n\nSome words\nand more:\n  one\n  two\nthen\nthe rest.\n\nExamples:\n  run"
    whole = "Some words and more:\n  one\n  two\nthen the rest.\n\nExamples:\n  run"
    assert flowing(text) == f"First.\n\n\n[not dim]{whole}[/]"
    assert flowing("Only\none.") == "Only one."


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_can_be_quiet(name: str) -> None:
    assert "--quiet" in {option for parameter in command(name).params for option in parameter.opts}


def test_no_arguments_show_the_help(cli: Cli) -> None:
    said = cli()
    assert said.code == 0
    assert all(name in said.out for name in COMMANDS)


def test_version(cli: Cli) -> None:
    assert re.fullmatch(r"rwkv-export \d+\.\d+\.\d+\n", cli("--version").out)


def test_help_imports_no_heavy_package() -> None:
    program = (
        "import sys; from rwkv_export.main import run; code = run(['export', '--help']);"
        f"print(sorted({HEAVY} & set(sys.modules)), code, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[] 0"


def functions() -> dict[str, Callable[..., object]]:
    import exporter
    import validation
    from exporter.fetch import fetch
    from exporter.synth import synth
    from runtimes.generate import continue_text
    from rwkv_export.demo import demo
    from validation.comparison import compare

    return {
        "export": exporter.export,
        "validate": validation.validate,
        "bench": validation.measure,
        "compare": compare,
        "generate": continue_text,
        "synth": synth,
        "fetch": fetch,
        "demo": demo,
    }


@pytest.mark.parametrize("name", ["export", "validate", "bench", "compare", "generate", "synth", "fetch", "demo"])
def test_a_command_takes_what_its_function_takes(name: str) -> None:
    behind = inspect.signature(functions()[name]).parameters
    offered = inspect.signature(command(name).callback).parameters  # type: ignore[arg-type]
    internal = {"progress", "find", "reference", "keep", "spent"}  # seams for tests and other callers, not for a shell
    assert set(behind) - internal <= set(offered)
    for shared in set(behind) & set(offered) - internal:
        ours, theirs = offered[shared].default, behind[shared].default
        if theirs is not inspect.Parameter.empty and not (ours in (None, "") and theirs in (None, ())):
            assert str(ours) == str(theirs), f"{shared} has another default"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_thin_layer(name: str) -> None:
    tree = ast.parse((ROOT / "rwkv_export" / "commands" / f"{name}.py").read_text(encoding="utf-8"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt)]
    assert len(statements) <= 15


def asked(words: str, shell: str) -> subprocess.CompletedProcess[str]:
    """What a shell is told; bash hands over words as it splits them, at ":" and "=", too."""
    pieces = [piece for word in words.split(" ") for piece in re.split("([:=])", word) if piece or not word]
    question = {
        "_RWKV_EXPORT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "\n".join(pieces),
        "COMP_CWORD": str(len(pieces) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    program = (
        "import sys; from rwkv_export.main import main\n"
        "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    environment = {**os.environ, **question}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


def complete(words: str, shell: str = "bash") -> list[str]:
    return asked(words, shell).stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rwkv-export val", ["validate"]),
        ("rwkv-export export -t onnx", ["onnx-cpu", "onnx-webgpu"]),
        ("rwkv-export export -t onnx-webgpu -p int", ["int8", "int4"]),
        ("rwkv-export export -t onnx-cpu -O gr", ["graphs=one", "graphs=each"]),
        ("rwkv-export export -t onnx-cpu -O graphs=o", ["one"]),
        ("rwkv-export export -t rknn --soc rk", ["rk3588", "rk3576"]),
        ("rwkv-export validate x --on or", ["ort:cpu", "ort:cpu-fused", "ort:webgpu", "ort:cuda"]),
        ("rwkv-export validate x --on ort:cpu", ["cpu", "cpu-fused"]),
        ("rwkv-export generate x --on mi", ["mil:cpu", "mil:cpu-fp16acc"]),
        ("rwkv-export synth --version 5", ["5.0", "5.1", "5.2"]),
        ("rwkv-export synth --size 0", ["0.1b", "0.4b"]),
        ("rwkv-export setup r", ["rknn"]),
    ],
)
def test_completion_knows_what_can_be_said(words: str, expected: list[str]) -> None:
    assert complete(words) == expected


def test_completion_takes_no_torch_once_it_knows() -> None:
    complete("rwkv-export export -t onnx")
    done = asked("rwkv-export export -t onnx", "bash")
    assert (done.stdout, done.stderr) == ("onnx-cpu\nonnx-webgpu\n", "False\n")


def test_completions_are_described_in_one_line_each() -> None:
    names = [line.partition("\t")[0] for line in complete("rwkv-export export -t ", "fish")]
    assert names == sorted(registry.targets())
    options = [line.partition("\t")[0] for line in complete("rwkv-export validate --", "fish")]
    assert all(option.startswith("--") for option in options)


def test_run_is_what_the_console_script_calls() -> None:
    assert run(["--version"]) == 0
