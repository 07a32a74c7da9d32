"""The programs that step artifacts without Python, started here and on emulated Arm processors; it tests nothing."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import runtimes
from runtimes.agent.programs import Program
from runtimes.contract import Array
from runtimes.errors import Missing
from runtimes.manifest import open_artifact
from runtimes.pte.runner import results
from runtimes.pte.runner.results import Agreement, Told
from tests.requirements import require

QEMU = "qemu-aarch64-static"
LEAST_QEMU = 10  # QEMU 7 crashes on ONNX Runtime's library, and shows it the processor of the machine around it
CPUS = {"NEON": "cortex-a53", "dot": "cortex-a76", "i8mm": "max,sve=off,sme=off,pauth-impdef=on"}
"""Models of processors by what each can that the one before cannot."""
TOKENS = tuple(np.random.default_rng(5).integers(0, 101, 20).tolist())

# Mask and value of instruction words, from the encoding index of the Arm Architecture Reference Manual for A-profile.
INSTRUCTIONS: Mapping[str, tuple[tuple[int, int], ...]] = {
    "dot": ((0x9FE0FC00, 0x0E809400), (0x9FC0F400, 0x0F80E000)),  # SDOT, UDOT by vector and by element
    "i8mm": ((0xDFE0F400, 0x4E80A400),),  # SMMLA, UMMLA, USMMLA
    "SVE": ((0x1E000000, 0x04000000),),  # the whole group
}


@dataclass(frozen=True)
class Runner:
    """The command that starts a built program."""

    command: tuple[str, ...]

    def __call__(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [*self.command, *map(str, words), "--threads", "1"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def step(self, model: Path, folder: Path, *words: object, tokens: tuple[int, ...] = TOKENS) -> tuple[Told, Array]:
        """What it printed and its logits; its state goes to folder/state.bin."""
        logits, ids = folder / "logits.npy", ",".join(map(str, tokens))
        outputs = ("--logits", logits, "--state-out", folder / "state.bin")
        done = self("--model", model, "--tokens", ids, *outputs, *words)
        assert done.returncode == 0, done.stderr
        return results.read(done.stdout), np.load(logits, allow_pickle=False)


def here(program: Program) -> Runner:
    """The program for this machine; skips where no compiler is."""
    return Runner((str(_built(program, platform.machine(), "cxx") / program.name),))


def emulated(program: Program, cpu: str, log: Path | None = None) -> Runner:
    """The program for Arm on such a processor; with `log`, each instruction goes there before it first runs."""
    require("arm64", _lacking())
    folder = _built(program, "aarch64", "arm64")
    loader = (f"{folder}/ld-linux-aarch64.so.1", "--library-path", f"{folder}")
    logging = ("-d", "in_asm", "-D", f"{log}") if log else ()
    return Runner((QEMU, "-cpu", cpu, *logging, *loader, f"{folder}/{program.name}", "--emulated"))


def kernels(log: Path) -> set[str]:
    """Of INSTRUCTIONS, those that ran."""
    words = {int(word, 16) for word in set(re.findall(rb"^0x[0-9a-f]+: +([0-9a-f]{8}) ", log.read_bytes(), re.M))}
    assert len(words) > 1000, "this QEMU logs no instructions"
    return {
        name
        for name, encodings in INSTRUCTIONS.items()
        if any(word & mask == value for mask, value in encodings for word in words)
    }


def compared(artifact: Path, told: Told, logits: Array, folder: Path) -> Agreement:
    """Against the artifact's session here."""
    specs = tuple(tensor.spec() for tensor in open_artifact(artifact).manifest.state)
    session = runtimes.open_session(artifact)
    return results.compare(session, told, logits, results.read_state(folder / "state.bin", specs))


def _lacking() -> str | None:
    if not shutil.which(QEMU):
        return f"{QEMU} is not installed"
    said = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.", said)
    assert found, said
    return None if int(found[1]) >= LEAST_QEMU else f"{QEMU} is of version {found[1]}, {LEAST_QEMU} is needed"


def _built(program: Program, machine: str, tool: str) -> Path:
    try:
        return program.folder(machine)
    except Missing as error:
        require(tool, error.message)
        raise
