"""The README.md in every artifact folder: what it holds and how to load and step it; nothing that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from runtimes.manifest import Manifest

PYTHON = """```python
import runtimes

session = runtimes.open_session("{folder}")     # verifies every file first
step = session.step({token}, session.initial_state())
print(step.logits.argmax(), step.seconds)       # logits: ({vocab},) float32
step = session.step({token}, step.state)        # a state stays valid: keep it, save it, branch from it
```"""


def write(manifest: Manifest, usage: Mapping[str, str], folder: Path) -> None:
    """Write README.md for `manifest`; `usage` are the target's own sections, title -> Markdown."""
    environment = Environment(  # noqa: S701  Markdown for people, not HTML
        loader=PackageLoader("exporter", "."), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    name = f"{manifest.model.name}.{manifest.target.name}.{manifest.target.precision}"
    token = 1 if manifest.model.vocab > 1 else 0
    python = PYTHON.format(folder=name, token=token, vocab=manifest.model.vocab)
    state_bytes = sum(tensor.spec().nbytes for tensor in manifest.state)
    text = environment.get_template("artifact.md.j2").render(
        m=manifest, name=name, python=python, usage=usage, state_bytes=state_bytes
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
