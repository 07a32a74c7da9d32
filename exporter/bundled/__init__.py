"""The trained model that ships with the package and a text it has never seen; it only names the files."""

from __future__ import annotations

from pathlib import Path

MODEL: Path = Path(__file__).parent / "austen-7-1.9m.pth"
"""RWKV-7, 4 layers, width 192, vocabulary 257: token 0 is end of text, token b + 1 is byte b."""

HELDOUT: Path = Path(__file__).parent / "heldout.txt"
"""ASCII prose for perplexity: the last chapters of Emma, which the model was not trained on."""
