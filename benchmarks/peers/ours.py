"""Our side of the comparison: exports the artifact and says how it is served, with the public functions only."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import exporter
import runtimes.registry
from exporter import registry
from peers.contract import MINE, OURS, Prepared
from runtimes import manifest
from runtimes.errors import WrongCall, did_you_mean
from runtimes.files import write_text_atomically
from validation.bandwidth import bytes_per_token

THREADS = "RWKV_EXPORT_THREADS"


class Ours:
    """One of MINE; its artifacts are in `cache`, made again when the exporter changes."""

    def __init__(self, cache: Path, name: str = OURS) -> None:
        self.name = name
        self._own = MINE[name]
        self._cache = cache / OURS

    def prepare(self, checkpoint: Path, precision: str) -> Prepared:
        """Export, or find what was exported by the same sources.

        Raises WrongCall for a precision there is not, Missing where the place is not usable here.
        """
        runtimes.registry.require(self._own.place)
        target, _ = registry.find(self._own.target)
        if precision not in target.precisions:
            hint = did_you_mean(precision, target.precisions)
            raise WrongCall(f"{target.name} has no precision {precision}", hint=hint)
        folder = self._cache / f"{checkpoint.stem}.{target.name}.{precision}"
        stamp, sources = folder.with_name(f"{folder.name}.sources"), source_digest()
        if not folder.exists() or not stamp.exists() or stamp.read_text(encoding="utf-8") != sources:
            stamp.unlink(missing_ok=True)
            sizes = self._own.prefill
            exporter.export(checkpoint, targets=[target.name], precision=precision, prefill=sizes, out=self._cache)
            write_text_atomically(stamp, sources)
        document = manifest.read(folder)
        size = sum(file.bytes for file in document.files if file.path != document.tokenizer.file)
        (step,) = (graph for graph in document.graphs if graph.tokens == 1)
        return Prepared(folder, size, bytes_per_token(folder, step))

    def command(self, model: Path, threads: int) -> list[str | Path]:
        """The worker; it takes its threads from the environment."""
        return [sys.executable, "-m", "peers.ours_worker", model, self._own.place]

    def environment(self, threads: int) -> dict[str, str]:
        return {THREADS: str(threads)}


def source_digest() -> str:
    """Hash of every file of the exporter, by which an artifact is known to be up to date."""
    digest = hashlib.sha256()
    folder = Path(exporter.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
