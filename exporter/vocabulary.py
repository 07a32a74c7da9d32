"""Decides which tokenizer belongs to a model, puts its file into the artifact and reads text with it; trains none."""

from __future__ import annotations

import shutil
from pathlib import Path

from exporter.model import Model
from runtimes.errors import Missing
from runtimes.manifest import Tokenizer
from runtimes.tokenizer import PILE_FILE, kind_for, open_tokenizer

WORLD_FILE = "rwkv_vocab_v20230424.txt"


def place_tokenizer(model: Model, folder: Path) -> Tokenizer:
    """The manifest's tokenizer entry, its file (if the kind has one) copied into `folder`.

    World's vocabulary comes with its Python package and is copied so that a phone has it. The Pile's must lie beside
    the checkpoint; without it the artifact says "none" rather than naming a file it lacks.
    """
    kind = kind_for(model.spec.vocab)
    if kind == "world":
        return _copied(kind, _world_vocabulary(), folder)
    if kind == "pile":
        path = _beside(model) / PILE_FILE
        return _copied(kind, path, folder) if path.is_file() else Tokenizer("none")
    return Tokenizer(kind)


def encoded(model: Model, text: str) -> list[int]:
    """The text's token ids; raises WrongCall for a vocabulary of no known tokenizer, Missing without its file."""
    kind, folder = kind_for(model.spec.vocab), _beside(model)
    if kind == "pile" and not (folder / PILE_FILE).is_file():
        raise Missing(f"{PILE_FILE} is not beside the checkpoint", hint=f"copy it to {folder}")
    return open_tokenizer(kind, folder).encode(text)


def _beside(model: Model) -> Path:
    """The folder of the checkpoint."""
    path = model.checkpoint.path
    return path if path.is_dir() else path.parent


def _world_vocabulary() -> Path:
    from pyrwkv_tokenizer import RWKVTokenizer

    return Path(RWKVTokenizer().vocab_filepath)


def _copied(kind: str, source: Path, folder: Path) -> Tokenizer:
    name = WORLD_FILE if kind == "world" else PILE_FILE
    shutil.copyfile(source, folder / name)
    return Tokenizer(kind, name)
