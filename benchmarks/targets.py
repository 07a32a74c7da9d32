"""Exports the bundled model to every precision of every target, proves each, and times those that hardware here runs.

python benchmarks/targets.py out/targets --json benchmarks/results/<machine>/targets-<date>.json

What is exported already is taken as it is; rows are kept beside the results as they come. A target whose toolchain this
machine lacks is named and left out. `matrix.py` prints the results as tables.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import exporter
from exporter import registry
from runtimes.errors import RwkvExportError
from rwkv_export import output
from validation import measure, outcome, validate
from validation.evidence import Evidence, evidence
from validation.outcome import Parity, Results
from validation.rows import Journal, Keep

TEXT = 256
"""Tokens of text that are predicted: emulators take half a second for each."""


def made(folder: Path) -> list[Path]:
    """An artifact for each precision of each target, exported unless it is there."""
    artifacts = []
    for name, target in registry.targets().items():
        for precision in target.precisions:
            there = list(folder.glob(f"*.{name}.{precision}"))
            try:
                with output.talking(quiet=False) as progress:
                    asked = {"targets": [name], "precision": precision, "out": folder}
                    artifacts += there or exporter.export(None, **asked, progress=progress)  # type: ignore[arg-type]
            except RwkvExportError as error:
                print(f"{name} {precision} is left out: {error.message}", file=sys.stderr)
    return artifacts


def proven(artifacts: list[Path], keep: Keep) -> Results:
    """Parity and text of all, speed of those that passed on hardware."""
    with output.talking(quiet=False) as progress:
        found = validate(artifacts, quality_tokens=TEXT, keep=keep, progress=progress)
        fast = {row.identity.artifact for row in found.parity if _on_hardware(row)}
        timed = measure([path for path in artifacts if path.name in fast], keep=keep, progress=progress)
    return replace(found, latency=timed.latency)


def _on_hardware(row: Parity) -> bool:
    return evidence(row) is Evidence.HARDWARE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where artifacts are")
    parser.add_argument("--json", type=Path, required=True, help="results file to write")
    asked = parser.parse_args()
    artifacts, journal = made(asked.folder), Journal(asked.json)
    outcome.write(proven(artifacts, journal.keep), asked.json)
    journal.end()


if __name__ == "__main__":
    main()
