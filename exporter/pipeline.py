"""export(): checkpoint -> version -> precision -> target -> manifest; the only file that knows the order of things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from exporter import keep, readme, registry, sources
from exporter.atomic import replacing
from exporter.calibration import read_text, require_read
from exporter.contract import Job, Target, TargetFile, Written
from exporter.model import Model, open_model
from exporter.models.layers import check_step
from exporter.progress import Advance, Progress, silent
from exporter.vocabulary import encoded, place_tokenizer
from runtimes import manifest
from runtimes.errors import WrongCall
from runtimes.stacking import parts

TOOLS = ("rwkv-export", "torch", "numpy", "onnx", "onnx-ir", "onnxscript", "coremltools")


@dataclass(frozen=True)
class Plan:
    """One artifact to write, every choice made and checked."""

    target: Target
    file: TargetFile
    precision: str
    options: Mapping[str, str]
    prefill: tuple[int, ...]
    folder: Path
    text: str | None = None


def export(
    checkpoint: str | Path | None = None,
    *,
    targets: Sequence[str],
    precision: str | None = None,
    out: str | Path = "out",
    options: Mapping[str, str] | None = None,
    prefill: Sequence[int] = (),
    ln_x_eps: float | None = None,
    state: str | Path | None = None,
    calibration: str | Path | None = None,
    progress: Progress = silent,
) -> list[Path]:
    """Write one artifact folder `<model>.<target>.<precision>` in `out` for each target, and return the folders.

    checkpoint: .pth, .safetensors or Hugging Face folder; the bundled model if None
    precision:  one of the targets' precisions; each target's default if None
    options:    target options by name, e.g. {"ios": "18"}
    prefill:    sizes of additional graphs that take several tokens at once
    ln_x_eps:   epsilon of the group norm over heads, if not the official 64e-5
    state:      file of tuned `time_state` tensors that become the initial state
    calibration: UTF-8 text that ranges are found on, and 4 bits rounded by; bundled text if None

    Everything that can be refused is refused before the first artifact is begun; an artifact appears whole or not at
    all, and replaces an older one in one step. Raises WrongCall, BadCheckpoint or Missing.
    """
    if not targets:
        raise WrongCall("no target was named", hint=f"known: {', '.join(registry.targets())}")
    found = [registry.find(name) for name in dict.fromkeys(targets)]
    chosen = registry.choose_options([target for target, _ in found], options or {})
    model = open_model(checkpoint, ln_x_eps=ln_x_eps, state=state)
    text = None if calibration is None else read_text(Path(calibration))
    plans = []
    for target, file in found:
        exact = registry.choose_precision(target, precision)
        file.refuse(model.spec, exact, chosen[target.name])
        step = model.build(target.spelling)
        check_step(model.spec, step)
        keep.require_known(chosen[target.name], (name for name, _ in step.named_parameters()))
        folder = Path(out) / f"{model.checkpoint.name}.{target.name}.{exact}"
        settings = {**chosen[target.name], **(require_read(target, exact, chosen[target.name], text) if text else {})}
        plans.append(Plan(target, file, exact, settings, _sizes(target, prefill), folder, text))
    with progress("hashing the checkpoint"):
        sources.remember(model.checkpoint)
    for plan in plans:
        _write(plan, model, progress)
    return [plan.folder for plan in plans]


def _sizes(target: Target, prefill: Sequence[int]) -> tuple[int, ...]:
    if prefill and not target.prefill:
        raise WrongCall(
            f"target {target.name} has no prefill graphs yet",
            hint=f"targets that have: {', '.join(name for name, t in registry.targets().items() if t.prefill)}",
        )
    if odd := [size for size in prefill if not 2 <= size <= 512]:
        raise WrongCall(f"prefill size {odd[0]} is not between 2 and 512")
    return tuple(sorted(set(prefill)))


def _write(plan: Plan, model: Model, progress: Progress) -> None:
    def staged(text: str, total: int | None = None) -> AbstractContextManager[Advance]:
        return progress(f"{plan.target.name} {plan.precision}: {text}", total)

    module = model.build(plan.target.spelling)
    encode = partial(encoded, model)
    job = Job(plan.target, plan.precision, plan.options, plan.prefill, model.spec, module, encode, staged, plan.text)
    with replacing(plan.folder, _identity(plan, model)) as folder:
        written = plan.file.export(job, folder)
        _require_graphs(plan, written, folder)
        document = _describe(plan, model, written, folder)
        readme.write(document, written.usage, folder)
        manifest.write(_with_files(document, folder), folder)


def _require_graphs(plan: Plan, written: Written, folder: Path) -> None:
    """Raise TypeError where a target did not write what it was asked for, or says that it did."""
    if absent := {1, *plan.prefill} - {graph.tokens for graph in written.graphs}:
        raise TypeError(f"target {plan.target.name} returned no graph of {sorted(absent)} tokens")
    if lost := [graph.file for graph in written.graphs if not (folder / graph.file).exists()]:
        raise TypeError(f"target {plan.target.name} returned a graph in {lost[0]}, which it did not write")


def _identity(plan: Plan, model: Model) -> dict[str, object]:
    """What an interrupted export must have in common with the one that continues it."""
    return {
        "checkpoint": model.checkpoint.sha256(),
        "ln_x_eps": model.spec.ln_x_eps,
        "target": plan.target.name,
        "precision": plan.precision,
        "options": dict(plan.options),
        "prefill": plan.prefill,
        "tools": {name: version(name) for name in TOOLS},
    }


def _describe(plan: Plan, model: Model, written: Written, folder: Path) -> manifest.Manifest:
    """The manifest, its file list still empty; writes the tokenizer and the tuned state beside the graphs."""
    target = manifest.Target(
        name=plan.target.name,
        runtime=plan.target.runtime,
        device=plan.target.device,
        precision=plan.precision,
        tolerance=plan.target.precisions[plan.precision],
        options=plan.options,
        kernel=plan.target.kernel,
    )
    return manifest.Manifest(
        schema=manifest.SCHEMA,
        model=model.facts(),
        source=model.checkpoint.source(),
        target=target,
        precision=written.precision,
        graphs=written.graphs,
        state=written.state,
        tokenizer=place_tokenizer(model, folder),
        files=(),
        tools=dict(sorted(written.tools.items())),
        initial_state=_place_initial_state(model, written, folder),
    )


def _place_initial_state(model: Model, written: Written, folder: Path) -> str | None:
    """Tuned states as an uncompressed .npz in the graphs' own shapes, or nothing."""
    if not model.initial:
        return None
    shapes = {part.name: part.shape for tensor in written.state for part in parts(tensor.spec())}
    name = "initial_state.npz"
    arrays = {key: array.reshape(shapes[key]) for key, array in model.initial.items()}
    np.savez(folder / name, allow_pickle=False, **arrays)
    return name


def _with_files(document: manifest.Manifest, folder: Path) -> manifest.Manifest:
    return replace(document, files=manifest.list_files(folder))
