"""Reads a plan and spreads it into cells, one artifact in one place of one device each; runs nothing."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import runtimes
from runtimes import manifest, registry
from runtimes.errors import WrongCall
from runtimes.schema import SchemaError, from_plain, to_plain
from validation.outcome import Identity
from validation.runner import Case
from validation.trace import require_steps


@dataclass(frozen=True)
class Device:
    """One thing that runs one timing at a time.

    name:    what the results call it
    on:      places as in `validate --on`; where empty, the place each artifact was made for
    targets: only artifacts of these targets; where empty, all that a place can read
    needs:   the resource a worker of a cluster must advertise to be this device; "" where no cluster is used
    """

    name: str
    on: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    needs: str = ""


@dataclass(frozen=True)
class Work:
    """What is done in every cell; the numbers as in `validate` and `bench`.

    checkpoint: the path, on the machine that runs the cell; "" to look for it there
    """

    validate: bool = True
    bench: bool = True
    steps: int = 64
    prompt: int = 64
    tokens: int = 128
    checkpoint: str = ""


@dataclass(frozen=True)
class Document:
    """A plan file: artifact folders (patterns are expanded), devices, and the work."""

    artifacts: tuple[str, ...]
    device: tuple[Device, ...]
    work: Work = field(default_factory=Work)


@dataclass(frozen=True, eq=False)
class Cell:
    """One artifact in one place of one device.

    folder: absolute, so that a worker that sees the same file system finds it
    digest: sha256 of the artifact's manifest, which holds the hash of every other file
    identity: of its rows while nothing ran
    """

    device: Device
    folder: Path
    place: str
    digest: str
    identity: Identity
    work: Work

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.folder.name} on {self.place} of {self.device.name}"

    @property
    def key(self) -> str:
        """The same for the same artifact, device and work, different otherwise; a file name everywhere."""
        named = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{self.device.name}.{self.folder.name}.{self.place}")
        told = json.dumps([to_plain(self.device), str(self.folder), self.place, self.digest, to_plain(self.work)])
        return f"{named[:100]}.{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def read(path: Path) -> tuple[Cell, ...]:
    """The cells of a plan, devices first, artifacts in the order given; artifact paths are relative to the plan.

    A place that cannot read an artifact's graphs makes no cell. Raises WrongCall for a file that is no plan, and for
    one with a device that makes no cell at all.
    """
    document = _document(path)
    folders = list(_folders(document.artifacts, path.parent))
    manifests = {folder: manifest.read(folder) for folder in folders}
    cells = []
    for device in document.device:
        made = [cell for folder in folders for cell in _cells(device, folder, manifests[folder], document.work)]
        if not made:
            wanted = f" of targets {', '.join(device.targets)}" if device.targets else ""
            raise WrongCall(
                f"device {device.name!r} of {path} has nothing to run: no artifact{wanted} can be read by "
                f"{', '.join(device.on) or 'the place it was made for'}"
            )
        cells += made
    return tuple(cells)


def _document(path: Path) -> Document:
    try:
        document = from_plain(Document, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise WrongCall(f"cannot read plan {path}: {error.strerror}") from error
    except (SchemaError, ValueError, RecursionError) as error:
        raise WrongCall(f"{path} is not a plan: {error}", hint="`rwkv-export matrix --help` shows one") from error
    repeated = [name for name, count in Counter(device.name for device in document.device).items() if count > 1]
    if repeated:
        raise WrongCall(f"{path} has several devices called {repeated[0]!r}", hint="results are kept by name")
    if not document.device:
        raise WrongCall(f"{path} names no device", hint="`rwkv-export matrix --help` shows a plan")
    work = document.work
    if not (work.validate or work.bench):
        raise WrongCall(f"{path} wants neither `validate` nor `bench`", hint="set one of them in [work]")
    require_steps(work.steps)
    if min(work.prompt, work.tokens) < 1:
        raise WrongCall(f"prompt and tokens of {path} must be positive")
    return document


def _folders(patterns: Sequence[str], beside: Path) -> Iterator[Path]:
    """Every artifact folder once, absolute; raises WrongCall for a pattern that matches nothing."""
    seen = set()
    for pattern in patterns:
        path = beside.resolve() / pattern  # which is `pattern` alone where that is absolute
        try:
            matched = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        except (ValueError, IndexError) as error:  # the latter for "/"
            raise WrongCall(f"artifacts has {pattern!r}, which is no pattern: {error}") from error
        except OSError as error:  # a folder that goes while it is looked through
            raise WrongCall(f"cannot look for {pattern!r}: {error.strerror}: {error.filename}") from error
        if not matched:
            raise WrongCall(f"no folder matches {pattern!r} beside {beside.resolve()}")
        for match in matched:
            for folder in manifest.find(match):
                if folder not in seen:
                    seen.add(folder)
                    yield folder


def _cells(device: Device, folder: Path, document: manifest.Manifest, work: Work) -> Iterator[Cell]:
    if device.targets and document.target.name not in device.targets:
        return
    digest = manifest.sha256(folder / manifest.FILE_NAME)
    for wanted in device.on or (f"{document.target.runtime}:{document.target.device}",):
        if runtimes.reads(document, wanted):
            place = ":".join(registry.parse(wanted))
            yield Cell(device, folder, place, digest, Case(folder, document, place).identity, work)
