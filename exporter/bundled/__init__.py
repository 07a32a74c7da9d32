"""The trained models that ship with the package and a text they have never seen; it only names the files."""

from __future__ import annotations

from pathlib import Path

MODEL: Path = Path(__file__).parent / "austen-7-1.9m.pth"
"""RWKV-7, 4 layers, width 192, vocabulary 257: token 0 is end of text, token b + 1 is byte b."""

SIBLINGS: dict[str, Path] = {
    version: Path(__file__).parent / f"austen-{version}-0.4m.pth" for version in ("4", "5.2", "6")
}
"""By version, smaller models of older versions, same text and vocabulary: 2 layers, width 128."""

HELDOUT: Path = Path(__file__).parent / "heldout.txt"
"""ASCII prose for perplexity: the last chapters of Emma, which no bundled model was trained on."""
