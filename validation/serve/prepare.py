"""Everything that can go wrong before a browser comes: packages, artifacts, checkpoints, onnxruntime-web."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.progress import Progress
from runtimes import manifest
from runtimes.errors import Missing, WrongCall
from validation.golden import Golden, find_checkpoint, open_reference, same_checkpoint
from validation.quality import open_text
from validation.serve import ort_web, places
from validation.serve.cell import Offer, Plan
from validation.trace import require_steps

if TYPE_CHECKING:
    from validation.serve.app import Site

PACKAGES = ("segno", "starlette", "trustme", "uvicorn")


def prepare(
    artifacts: Sequence[Path],
    *,
    on: Sequence[str],
    out: Path,
    checkpoint: Path | None,
    steps: int,
    seed: int,
    prompt: int,
    tokens: int,
    runtime: Path | None,
    progress: Progress,
) -> Site:
    """What is to be served: artifacts verified, their checkpoints run, onnxruntime-web at hand.

    on:      places in a browser; where empty, all that it has
    steps:   tokens to compare over, drawn with `seed`
    prompt, tokens: to time with
    runtime: onnxruntime-web, unpacked; where None, the cache's, which npm fills

    Raises Missing where this machine lacks one of these, BadArtifact for what no browser loads, WrongCall for the rest.
    """
    if absent := [name for name in PACKAGES if find_spec(name) is None]:
        raise Missing(
            f"the Python package {absent[0]} is not installed, which serving needs",
            hint="pip install 'rwkv-export[serve]'",
        )
    from validation.serve.app import Site

    if not artifacts:
        raise WrongCall("no artifact was named", hint="name artifact folders, such as out/*")
    require_steps(steps)
    chosen = tuple(map(places.parse, dict.fromkeys(on)))
    folders = list(chain.from_iterable(manifest.find(path) for path in artifacts))
    offers, files = _offers(folders)
    files |= {f"ort/{name}": path for name, path in ort_web.find(runtime, progress).items()}
    find = partial(same_checkpoint, checkpoint) if checkpoint else find_checkpoint
    golden = Golden(steps, seed, find, open_reference, progress=progress)
    for offer in offers:
        golden.trace(offer.artifact)  # now, so that a missing checkpoint is known before anybody comes
    out.mkdir(parents=True, exist_ok=True)
    return Site(files, offers, chosen, Plan(golden, open_text(), prompt, tokens), out)


def _offers(folders: Sequence[Path]) -> tuple[list[Offer], dict[str, Path]]:
    """The artifacts, and the files of theirs that are served."""
    offers: list[Offer] = []
    files: dict[str, Path] = {}
    for index, folder in enumerate(folders):
        artifact = manifest.open_artifact(folder)
        wanted = places.demands(artifact)
        urls: Mapping[str, str] = {name: f"artifact/{index}/{name}" for name in wanted.files}
        files |= {url: folder / name for name, url in urls.items()}
        offers.append(Offer(artifact, wanted, urls))
    return offers, files
