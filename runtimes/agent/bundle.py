"""The package `runtimes` as one zip file that any Python 3.11 with numpy imports; it starts nothing."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from functools import cache
from pathlib import Path

import runtimes
from runtimes.environments import cache_folder
from runtimes.errors import Missing
from runtimes.files import write_bytes_atomically

LONG_AGO = (1980, 1, 1, 0, 0, 0)


@cache
def archive() -> Path:
    """The zip file in the user's cache folder, named by its content; raises Missing where that cannot be written."""
    content = _zipped(Path(runtimes.__file__).parent)
    path = cache_folder() / "agent" / f"runtimes-{hashlib.sha256(content).hexdigest()[:16]}.zip"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(path, content)
        except OSError as error:
            raise Missing(f"cannot write {path}: {error.strerror}", hint="set XDG_CACHE_HOME") from error
    return path


def environment(library: Path | str) -> dict[str, str]:
    """The variables of this process for another Python that shall import from `library` and nothing else of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPATH": str(library), "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _zipped(folder: Path) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.py")):
            entry = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix(), LONG_AGO)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    return held.getvalue()
