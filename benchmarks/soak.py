"""Lets runtimes generate for a long time, and says whether memory, speed and numbers stayed what they were.

    python benchmarks/soak.py --out soak.json
    python benchmarks/soak.py --out soak.json --hours 0.01 --steps 600 --place ort:cpu

Each place generates --steps tokens spread evenly over --hours, in a process of its own, all places at once. What each
was fed is then read by the float64 reference, and the states and logits at the end are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import exporter
from exporter.checkpoint import open_checkpoint
from exporter.model import open_model
from runtimes import manifest
from runtimes.contract import Array
from runtimes.files import write_text_atomically
from rwkv_export.output import remark, stdout
from validation import machine, metrics, tolerances
from validation.reference import Reference

PLACES = {
    "ort:cpu": "onnx-cpu",
    "ort:cpu-fused": "onnx-cpu",
    "pte:cpu": "executorch-xnnpack",
    "pte:cpu-direct": "executorch-xnnpack",
    "openvino:cpu": "openvino",
    "eager:cpu": "torch",
    "mil:cpu": "coreml",
    "coreai:cpu": "coreai",
}
"""Where, and the target whose artifact it runs. Emulators of NPUs take seconds a token, and are left out."""

LEAKS = {"coreai:cpu"}
"""Only where asked for: Apple's interpreter keeps what every call gives, 21 GB after 100,000 steps."""

PRECISION = "fp32"
BOUND = "fp32"  # of tolerances.toml
SETTLED = 0.25  # of the windows, at the start, that nothing is read from
GREW = 0.01  # of the resident size, or
GREW_BYTES = 2 << 20  # whichever is more, is no growth
SLOWED = 1.10  # median of the last quarter to that of the second


@dataclass(frozen=True)
class Verdict:
    """What the windows and the end say.

    growth_bytes: of the resident size, from the second quarter of the windows to the last
    slowdown:     median time of a token in the last quarter, to that in the second
    state_rel:    largest error of a state tensor at the end, relative to the tensor's largest magnitude
    max_abs:      of a logit of the last step
    """

    growth_bytes: int
    slowdown: float
    state_rel: float
    max_abs: float
    failures: tuple[str, ...]


def judge(windows: list[dict[str, Any]], state_rel: float, max_abs: float) -> Verdict:
    """Compare the second quarter of the windows with the last, and the end with the reference."""
    quarter = max(1, int(len(windows) * SETTLED))
    early, late = windows[quarter : 2 * quarter], windows[-quarter:]
    memory, speed = (
        [float(np.median([window[key] for window in part])) for part in (early, late)]
        for key in ("rss_bytes", "median_ms")
    )
    growth, slowdown, bound = int(memory[1] - memory[0]), speed[1] / speed[0], tolerances.bound(BOUND)
    failures = []
    if growth > max(GREW_BYTES, GREW * memory[0]):
        failures.append(f"memory grew by {growth / 1e6:.1f} MB")
    if slowdown > SLOWED:
        failures.append(f"a token takes {slowdown:.2f} times as long in the end")
    if not state_rel <= bound.state_rel:
        failures.append(f"the state is off by {state_rel:.1e}, more than {bound.state_rel:.0e}")
    if not max_abs <= bound.max_abs:
        failures.append(f"a logit is off by {max_abs:.1e}, more than {bound.max_abs:.0e}")
    return Verdict(growth, round(slowdown, 4), state_rel, max_abs, tuple(failures))


def run(place: str, artifact: Path, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Generate in a process of its own, then compare; what failed says so in `failures`."""
    folder.mkdir()
    sizes = [f"--{name}={getattr(given, name)}" for name in ("hours", "steps", "windows", "seed")]
    script = Path(__file__).with_name("soaking") / "generate.py"
    command = [sys.executable, str(script), str(artifact), place, *sizes, f"--out={folder}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2]
        return {"place": place, "failures": [f"it ended with status {done.returncode}: {said}"]}
    *windows, end = map(json.loads, done.stdout.splitlines())
    tokens, logits = np.load(folder / "tokens.npy"), np.load(folder / "logits.npy")
    with np.load(folder / "state.npz") as state:
        state_rel, max_abs = against_float64(given.checkpoint, tokens, dict(state), logits)
    return {"place": place, **end, **asdict(judge(windows, state_rel, max_abs)), "windows": windows}


def against_float64(
    checkpoint: Path | None, tokens: Array, state: dict[str, Array], logits: Array
) -> tuple[float, float]:
    """The errors at the end, of the state and of the logits, after the reference has read every token."""
    spec = open_model(checkpoint).spec
    reference = Reference(open_checkpoint(exporter.bundled.MODEL if checkpoint is None else checkpoint), spec.version)
    at = reference.initial_state()
    for token in tokens:
        step = reference.step(int(token), at)
        at = step.state
    errors = metrics.compare_state(reference.read_state(at), state)
    worst = max(error.max_abs / max(metrics.STATE_FLOOR, error.magnitude) for error in errors.values())
    return worst, metrics.compare_step(step.logits, logits).max_abs


def table(rows: list[dict[str, Any]]) -> Table:
    """A row a place."""
    made = Table("place", "steps", "hours", "median ms, first, last", "memory grew", "state off by", "verdict")
    for row in rows:
        if "windows" not in row:
            made.add_row(row["place"], *[""] * 5, "; ".join(row["failures"]))
            continue
        first, last = row["windows"][0], row["windows"][-1]
        made.add_row(
            row["place"],
            str(last["steps"]),
            f"{last['seconds'] / 3600:.2f}",
            f"{first['median_ms']:.3f}, {last['median_ms']:.3f}",
            f"{row['growth_bytes'] / 1e6:.1f} MB",
            f"{row['state_rel']:.1e}",
            "; ".join(row["failures"]) or "flat, and right",
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="default: the bundled model")
    parser.add_argument("--place", action="append", choices=PLACES, help="default: all but those known to leak")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--windows", type=int, default=60, help="in which times and memory are summed up (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    places = given.place or [place for place in PLACES if place not in LEAKS]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(len(places)) as pool:
        made = exporter.export(
            given.checkpoint, targets=sorted({PLACES[place] for place in places}), precision=PRECISION, out=scratch
        )
        artifacts = {manifest.read(folder).target.name: folder for folder in made}
        folders = [Path(scratch) / f"soak-{place.replace(':', '-')}" for place in places]
        rows = list(pool.map(lambda p, f: run(p, artifacts[PLACES[p]], f, given), places, folders))
    about = {"schema": 1, "date": datetime.now(UTC).date().isoformat(), "machine": asdict(machine.describe())}
    choices = {name: getattr(given, name) for name in ("hours", "steps", "seed")}
    write_text_atomically(given.out, json.dumps({**about, "choices": choices, "rows": rows}, indent=1) + "\n")
    stdout().print(table(rows))
    if failed := [row["place"] for row in rows if row["failures"]]:
        remark(f"not as they were: {', '.join(failed)}", quiet=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
