"""20B_tokenizer.json, which artifacts of Pile models hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from runtimes.tokenizer import PILE_FILE, open_tokenizer


def seeds(folder: Path) -> Iterator[bytes]:
    added = {
        "id": 0, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": True,
    }  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    model = {"type": "BPE", "vocab": {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]}
    document = {"version": "1.0", "added_tokens": [added], "pre_tokenizer": level, "decoder": level, "model": model}
    yield json.dumps(document).encode()


def read(data: bytes, folder: Path) -> None:
    (folder / PILE_FILE).write_bytes(data)
    tokenizer = open_tokenizer("pile", folder)
    tokenizer.decode(tokenizer.encode("abc\n"))
    tokenizer.decode(range(8))
