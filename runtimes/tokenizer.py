"""Text to token ids and back, a thin adapter over tokenizer packages; it trains nothing and downloads nothing."""

from __future__ import annotations

import ast
import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from runtimes.errors import BadArtifact, Missing, WrongCall, did_you_mean

KINDS = ("bytes", "world", "pile", "none")
PILE_FILE = "20B_tokenizer.json"
END_OF_TEXT = 0
"""The end-of-text id, the same in every RWKV vocabulary."""

UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()
"""What an id stands for that the model's vocabulary holds and the tokenizer's does not (padding rows)."""


class Tokenizer(Protocol):
    """One vocabulary. `spell` gives the bytes of a token, which may be a part of a character; 0 spells nothing."""

    def encode(self, text: str) -> list[int]: ...
    def spell(self, token: int) -> bytes: ...
    def decode(self, tokens: Iterable[int]) -> str: ...


class Decoder:
    """Turns a stream of tokens into text, holding bytes back until their character is complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """The characters this token completes, often one word, sometimes none."""
        return self._utf8.decode(self._tokenizer.spell(token))

    def flush(self) -> str:
        """A replacement character if the stream ended within a character, else nothing."""
        return self._utf8.decode(b"", final=True)


class _Spelling(ABC):
    @abstractmethod
    def spell(self, token: int) -> bytes: ...

    def decode(self, tokens: Iterable[int]) -> str:
        return b"".join(map(self.spell, tokens)).decode("utf-8", "replace")


class _Bytes(_Spelling):
    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in _utf8(text)]

    def spell(self, token: int) -> bytes:
        if token == END_OF_TEXT:
            return b""
        return bytes([token - 1]) if token <= 256 else UNKNOWN


class _World(_Spelling):
    """`pyrwkv_tokenizer` encodes; decoding reads its vocabulary file, as its decode() panics within a character."""

    def __init__(self) -> None:
        try:
            from pyrwkv_tokenizer import RWKVTokenizer
        except ImportError as error:
            raise _not_installed("pyrwkv_tokenizer", "pyrwkv-tokenizer") from error
        self._encoder = RWKVTokenizer()
        # Lines are `id repr length`; the repr is a str or bytes literal.
        lines = Path(self._encoder.vocab_filepath).read_text(encoding="utf-8").split("\n")
        self._literals = {
            int(line[: line.index(" ")]): line[line.index(" ") : line.rindex(" ")] for line in lines if line
        }

    def encode(self, text: str) -> list[int]:
        _utf8(text)
        return list(self._encoder.encode(text))

    def spell(self, token: int) -> bytes:
        if token == END_OF_TEXT:
            return b""
        if token not in self._literals:
            return UNKNOWN
        spelled = ast.literal_eval(self._literals[token].strip())
        return spelled if isinstance(spelled, bytes) else str(spelled).encode()


class _Pile(_Spelling):
    def __init__(self, folder: Path | None) -> None:
        path = (folder or Path()) / PILE_FILE
        if not path.is_file():
            raise BadArtifact(f"{path} does not exist", hint="copy the whole artifact folder, or export again")
        try:
            import tokenizers
        except ImportError as error:
            raise _not_installed("tokenizers", "tokenizers") from error
        try:
            self._encoder = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package has no class of its own
            raise BadArtifact(f"{path} is not a tokenizer: {error}", hint="export again") from error
        self._added = {token: added.content for token, added in self._encoder.get_added_tokens_decoder().items()}
        self._bytes = byte_level_alphabet()

    def encode(self, text: str) -> list[int]:
        _utf8(text)
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def spell(self, token: int) -> bytes:
        if token == END_OF_TEXT:
            return b""
        if token in self._added:
            return str(self._added[token]).encode()
        letters = self._encoder.id_to_token(token)
        if letters is None or not self._bytes.keys() >= set(letters):
            return UNKNOWN
        return bytes(self._bytes[letter] for letter in letters)


def byte_level_alphabet() -> dict[str, int]:
    """The letter that stands for each byte in byte-level BPE vocabularies (GPT-2's `bytes_to_unicode`), inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def open_tokenizer(kind: str, folder: Path | None = None) -> Tokenizer:
    """The tokenizer of one of KINDS; "pile" reads 20B_tokenizer.json from `folder`.

    Raises WrongCall for "none" and unknown kinds, BadArtifact without the file, Missing without the package.
    """
    if kind == "bytes":
        return _Bytes()
    if kind == "world":
        return _World()
    if kind == "pile":
        return _Pile(folder)
    if kind == "none":
        raise WrongCall("this model has no known tokenizer", hint="feed it token ids through runtimes.open_session")
    raise WrongCall(f"unknown tokenizer {kind!r}", hint=did_you_mean(kind, KINDS))


def kind_for(vocab: int) -> str:
    """The tokenizer a vocabulary of this size is usually made for; sizes include the padding rows models carry."""
    if 256 <= vocab <= 260:
        return "bytes"
    return {65529: "world", 65530: "world", 65536: "world", 50277: "pile", 50304: "pile"}.get(vocab, "none")


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise WrongCall(f"the text is not valid Unicode at character {error.start}", hint="pass UTF-8") from error


def _not_installed(module: str, package: str) -> Missing:
    return Missing(f"the Python package {module} is not installed", hint=f"pip install {package}")
