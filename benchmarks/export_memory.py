"""Measures time and peak memory of an ONNX export, in a process of its own, of a checkpoint it makes and removes.

    python benchmarks/export_memory.py --size 0.4b

Prints JSON: seconds and peak RSS of the whole export process (interpreter and imports included), the checkpoint's
bytes, and the peak beyond one checkpoint.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from exporter.synth import synth

EXPORT = """
import json, resource, sys, time
start = time.perf_counter()
import exporter
exporter.export(sys.argv[1], targets=["onnx-cpu"], precision="fp32", out=sys.argv[2])
unit = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps({"seconds": time.perf_counter() - start, "peak_rss_bytes": peak}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.4b")
    parser.add_argument("--version", default="7")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = synth(arguments.version, size=arguments.size, out=Path(folder) / "model.pth")
        size = checkpoint.stat().st_size
        command = [sys.executable, "-c", EXPORT, str(checkpoint), str(Path(folder) / "out")]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    beyond = result["peak_rss_bytes"] - size
    print(json.dumps({**vars(arguments), **result, "checkpoint_bytes": size, "beyond_checkpoint_bytes": beyond}))


if __name__ == "__main__":
    main()
