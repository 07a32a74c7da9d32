"""Downloads checkpoints from the Hugging Face Hub, continuing where a connection broke and checking hashes.

Names, listings, login and HTTP are huggingface_hub's. Its hf_hub_download is not used because it discards a partial
file when the connection is reset or the process ends; here the partial file stays beside its destination.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from exporter.formats.huggingface import CONFIG
from exporter.progress import Advance, Progress
from runtimes.errors import BadCheckpoint, Missing, WrongCall, did_you_mean

ATTEMPTS = 5  # in a row without a single byte
PAUSE = 1.0  # seconds between them
TIMEOUT = 10.0  # seconds until the listing must answer
CHUNK = 1 << 20  # bytes hashed at a time

CHECKPOINTS = (".pth", ".safetensors", ".bin")
TEXTS = ("*.json", "*vocab*.txt", "LICENSE*")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # in order of preference


@dataclass(frozen=True)
class File:
    """A file of a repository as the Hub lists it.

    sha256: of the content, for files in large-file storage; blob: git's hash, of the others
    """

    name: str
    url: str
    bytes: int
    sha256: str | None
    blob: str


def fetch(reference: str, *, into: Path | None = None, revision: str | None = None, progress: Progress) -> Path:
    """Download "owner/repo/file.pth", or "owner/repo" as a model folder, and return where it is.

    into: the folder to put it in, by default the current one; a file that is there and intact is not downloaded again
    Respects HF_ENDPOINT, HF_HUB_OFFLINE and the login of `hf auth login`.
    Raises WrongCall (no such repository or file), Missing (network, disk, permission) or BadCheckpoint (wrong hash).
    """
    repo, name = _parse(reference)
    target = (into or Path()) / PurePosixPath(name or repo).name
    try:
        with _explained(repo, revision):
            files = _listing(repo, revision)
    except (OfflineModeIsEnabled, httpx2.TransportError) as error:
        complete = target.is_file() or (target / CONFIG).is_file()  # only what was checked gets its final name
        if complete:
            return target
        raise Missing(
            f"cannot reach {constants.ENDPOINT} and {target} is not here: {error}",
            hint="connect, or unset HF_HUB_OFFLINE; HF_ENDPOINT names a mirror",
        ) from error
    wanted = [_find(repo, name, files)] if name else _model_folder(repo, files)
    with _explained(repo, revision):
        _download(wanted, target if not name else target.parent, progress)
    return target


def _parse(reference: str) -> tuple[str, str]:
    owner, _, rest = reference.partition("/")
    repo, _, name = rest.partition("/")
    strange = {"", ".", ".."} & set(reference.split("/"))
    if not repo or strange or ":" in reference:
        raise WrongCall(
            f"{reference!r} is not OWNER/REPO/FILE or OWNER/REPO",
            hint="e.g. BlinkDL/rwkv-7-world/RWKV-x070-World-0.1B-v2.8-20241210-ctx4096.pth",
        )
    return f"{owner}/{repo}", name


def _listing(repo: str, revision: str | None) -> list[File]:
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except (json.JSONDecodeError, LookupError, TypeError) as error:
        raise Missing(
            f"{constants.ENDPOINT} does not answer as a Hugging Face Hub does: {error}",
            hint="check HF_ENDPOINT, and whether a login page is in between",
        ) from error
    files = []
    for item in info.siblings or ():
        if item.size is None or item.blob_id is None:
            raise Missing(f"{constants.ENDPOINT} lists {repo} without sizes and hashes", hint="try another HF_ENDPOINT")
        url = hf_hub_url(repo, item.rfilename, revision=info.sha)
        files.append(File(item.rfilename, url, item.size, item.lfs.sha256 if item.lfs else None, item.blob_id))
    return files


def _find(repo: str, name: str, files: Sequence[File]) -> File:
    for file in files:
        if file.name == name:
            return file
    known = [file.name for file in files if file.name.endswith(CHECKPOINTS)]
    hint = did_you_mean(name, known) if known else f"{repo} has no checkpoints at all"
    raise WrongCall(f"{repo} has no file {name!r}", hint=hint)


def _model_folder(repo: str, files: Sequence[File]) -> list[File]:
    def matching(pattern: str) -> list[File]:
        return [file for file in files if "/" not in file.name and fnmatch.fnmatch(file.name, pattern)]

    weights = next((found for pattern in WEIGHTS if (found := matching(pattern))), [])
    if not weights or not matching(CONFIG):
        known = ", ".join(sorted(file.name for file in files if file.name.endswith(CHECKPOINTS)))
        raise WrongCall(f"{repo} is not a model folder", hint=f"name one of its files: {known}" if known else None)
    texts = {file.name: file for pattern in TEXTS for file in matching(pattern)}
    # The folder counts as complete once its config is there, so that comes last.
    return sorted([*texts.values(), *weights], key=lambda file: (file.name == CONFIG, file.name))


def _download(files: Sequence[File], folder: Path, progress: Progress) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    todo = [file for file in files if not _intact(_place(file, folder), file, progress)]
    _check_space(todo, folder)
    for file in todo:
        part = folder / f".{_place(file, folder).name}.{(file.sha256 or file.blob)[:12]}.part"
        with progress(f"downloading {file.name}", total=file.bytes) as advance:
            _transfer(file, part, advance)
        if not _intact(part, file, progress):
            part.unlink()
            raise BadCheckpoint(
                f"{file.name} arrived damaged: it does not have the hash that the Hub lists",
                hint="run the command again; if it happens again, try another HF_ENDPOINT",
            )
        part.replace(_place(file, folder))


def _place(file: File, folder: Path) -> Path:
    return folder / PurePosixPath(file.name).name


def _intact(path: Path, file: File, progress: Progress) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    git = hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)
    digest = hashlib.sha256() if file.sha256 else git
    with progress(f"checking {file.name}", total=file.bytes) as advance, path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest() == (file.sha256 or file.blob)


def _transfer(file: File, part: Path, advance: Advance) -> None:
    part.touch()
    if part.stat().st_size > file.bytes:
        part.write_bytes(b"")
    advance(part.stat().st_size)
    fruitless = 0
    while True:
        have = part.stat().st_size
        try:
            with part.open("ab") as stream:
                http_get(
                    file.url,
                    stream,
                    resume_size=have,
                    headers=build_hf_headers(),
                    expected_size=file.bytes,
                    tqdm_class=_bar(advance),
                )
            return
        except httpx2.TransportError as error:
            got = part.stat().st_size
            fruitless = 0 if got > have else fruitless + 1
            if fruitless == ATTEMPTS:
                raise Missing(
                    f"the connection broke off after {got} of {file.bytes} bytes of {file.name}: {error}",
                    hint="run the command again: it continues there",
                ) from error
            time.sleep(PAUSE)


def _bar(advance: Advance) -> type:
    """What huggingface_hub asks of a progress bar, drawing nothing and telling `advance`."""

    class Bar:
        def __init__(self, **_: object) -> None: ...

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, n: int) -> None:
            advance(n)

    return Bar


def _check_space(files: Sequence[File], folder: Path) -> None:
    needed, free = sum(file.bytes for file in files), shutil.disk_usage(folder).free
    if needed > free:
        raise Missing(
            f"{folder.resolve()} has {free:,} bytes free, the download needs {needed:,}", hint="choose another folder"
        )


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{repo}"
        raise Missing(
            f"{repo} is gated: its owner asks for consent", hint=f"accept at {page}, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise WrongCall(
            f"{constants.ENDPOINT} has no repository {repo}, or it is private",
            hint="check the name; for a private one run `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise WrongCall(f"{repo} has no revision {revision!r}", hint="leave it out for the newest") from error
    except HFValidationError as error:
        raise WrongCall(f"{repo!r} is not a repository name: {error}") from error
    except HfHubHTTPError as error:
        raise Missing(
            f"{constants.ENDPOINT} answered {error.response.status_code} for {repo}", hint="try again later"
        ) from error
    except OfflineModeIsEnabled:
        raise
    except (OSError, ValueError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        raise Missing(
            "the disk is full" if full else f"cannot download {repo}: {error}",
            hint="free some space; the download continues where it stopped" if full else "run the command again",
        ) from error
