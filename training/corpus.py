"""Turn the Debian package r-cran-janeaustenr into plain training, validation and held-out text; it trains nothing."""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import rdata

DATA = "usr/lib/R/site-library/janeaustenr/data"
NOVELS = ("sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey", "persuasion")
HELD_OUT = ("emma", 64 * 1024)  # the last whole chapters of this novel, at most so many bytes
VALIDATION = ("mansfieldpark", 60 * 1024)
CHAPTER_BREAK = "\f"  # becomes token 0, end of text

HEADING = re.compile(r"^\s*(chapter|volume)\s+([ivxlc]+|\d+)\.?\s*$", re.IGNORECASE)
ENDING = re.compile(r"^\s*(finis|the end|a note on the text|\*vide a letter.*)\s*$", re.IGNORECASE)
EDITORIAL = re.compile(r"\[(?:at this point|end volume)[^\]]*\]|\*", re.IGNORECASE)
WRAPPED_HYPHEN = re.compile(r"-\n\s*(?=\w)")  # "to-" at the end of a line, "morrow" on the next


def unserialise(compressed: bytes) -> object:
    """The R object in one zlib- or gzip-compressed serialisation."""
    serialised = zlib.decompress(compressed, wbits=32 + zlib.MAX_WBITS)  # 32: tell zlib from gzip by the header
    return rdata.conversion.convert(rdata.parser.parse_data(serialised, extension=".rds"))


def read_novels(package: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (novel, lines) from the package's lazy-load database: an .rdx index of (offset, length) into .rdb."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", str(package), folder], check=True)
        index = cast(dict[str, Any], unserialise((Path(folder) / DATA / "Rdata.rdx").read_bytes()))
        blob = (Path(folder) / DATA / "Rdata.rdb").read_bytes()
    for novel in NOVELS:
        offset, length = (int(number) for number in index["variables"][novel])
        record = blob[offset : offset + length]
        lines = unserialise(record[4:])  # the first four bytes give the uncompressed length
        yield novel, [str(line) for line in cast(Iterable[object], lines)]


def to_ascii(text: str) -> str:
    """No _emphasis_ marks, no accents, pounds in words; the source's quotation marks are straight already."""
    text = re.sub(r"£([\d,]+)", r"\1 pounds", text).replace("_", "")
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def chapters(lines: list[str]) -> list[str]:
    """The chapters of one novel, headings and everything before the first and after the last of them dropped."""
    found: list[list[str]] = []
    for line in lines:
        if HEADING.match(line):
            found.append([])
        elif ENDING.match(line) and found:
            break
        elif found:
            found[-1].append(line)
    cleaned = [paragraphs("\n".join(chapter)) for chapter in found]
    return [chapter for chapter in cleaned if chapter]  # "Volume I" is followed by "Chapter I": nothing between them


def paragraphs(chapter: str) -> str:
    """Wrapped lines joined, one blank line between paragraphs."""
    chapter = WRAPPED_HYPHEN.sub("-", EDITORIAL.sub("", to_ascii(chapter)))
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", chapter))
    return "\n\n".join(block for block in blocks if block)


def take_tail(book: list[str], limit: int) -> list[str]:
    """Remove from the book, and return, as many last chapters as fit into limit bytes."""
    tail: list[str] = []
    while sum(len(chapter) + 2 for chapter in tail) + len(book[-1]) <= limit:
        tail.insert(0, book.pop())
    return tail


def main() -> None:
    """Write train.txt, validation.txt and heldout.txt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="r-cran-janeaustenr_*_all.deb, from apt-get download")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/corpus"))
    arguments = parser.parse_args()
    books = {novel: chapters(lines) for novel, lines in read_novels(arguments.package)}
    parts = {
        "heldout": "\n\n".join(take_tail(books[HELD_OUT[0]], HELD_OUT[1])),
        "validation": "\n\n".join(take_tail(books[VALIDATION[0]], VALIDATION[1])),
        "train": CHAPTER_BREAK.join(chapter for book in books.values() for chapter in book),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, text in parts.items():
        (arguments.output / f"{name}.txt").write_text(text, encoding="ascii")
        print(f"{name}.txt: {len(text)} bytes")


if __name__ == "__main__":
    main()
