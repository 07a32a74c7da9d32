"""Records what a checkpoint computes over a text into a trace file; it compares nothing."""

from __future__ import annotations

import math
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from exporter.progress import Progress, silent
from runtimes.errors import Missing, WrongCall
from runtimes.tokenizer import kind_for, open_tokenizer
from validation import trace_file
from validation.quality import open_text
from validation.trace import LIKELIEST, choose_from, choose_tokens, record, require_steps, spaced
from validation.trace_file import About

if TYPE_CHECKING:
    from exporter.model import Model

TOKENS = 64
STRETCHES = 4
"""Steps whose states are kept, unless told."""


class Chosen(NamedTuple):
    """Tokens, the name of the text they are of, and the bytes that all but the first spell; "" and 0 for none."""

    tokens: tuple[int, ...]
    text: str
    bytes: int


def record_trace(
    checkpoint: str | Path | None = None,
    *,
    out: Path,
    tokens: int = TOKENS,
    text: Path | None = None,
    every: int | None = None,
    likeliest: int | None = None,
    seed: int = 0,
    ln_x_eps: float | None = None,
    state: Path | None = None,
    progress: Progress = silent,
) -> None:
    """Step the checkpoint in float32 through `tokens` tokens and write the trace to `out`.

    text:      a UTF-8 file; where None, the text that comes along, or random ids for a model without a tokenizer here
    every:     steps from one whose states and logits are kept whole to the next; a quarter of all where None
    likeliest: logits kept of the others, at least 10; where None, all if they take little room beside the states
    seed:      of the offset in the text, or of the ids
    ln_x_eps, state: as `export` takes them

    Raises WrongCall or Missing, OSError where the file cannot be written.
    """
    from exporter.model import open_model, reference_session

    require_steps(tokens)
    if tokens > trace_file.MOST_TOKENS or (likeliest or 10) < 10 or (every is not None and every < 1):
        raise WrongCall(
            f"cannot record {tokens} tokens"
            + (f", the state of every {every}" if every is not None else "")
            + (f", the {likeliest} likeliest logits" if likeliest is not None else ""),
            hint=f"{trace_file.MOST_TOKENS} tokens at most, states every 1 or more, 10 likeliest or more",
        )
    model = open_model(checkpoint, ln_x_eps=ln_x_eps, state=state)
    chosen = _choose(model, tokens, text=text, seed=seed)
    kept = spaced(tokens, every or -(-tokens // STRETCHES))
    with closing(reference_session(model.checkpoint.path, ln_x_eps=ln_x_eps)) as session:
        most = likeliest or _likeliest(model, tokens, len(kept))
        trace = record(session, chosen.tokens, tuned=model.initial, keep=kept, likeliest=most, progress=progress)
    trace_file.write(trace, _about(model, chosen, seed), out)


def _likeliest(model: Model, tokens: int, kept: int) -> int:
    """All logits where they take a quarter of the room of the states at most, else LIKELIEST."""
    states = 2 * kept * sum(math.prod(tensor.shape) for tensor in model.spec.state)
    return model.spec.vocab if 4 * tokens * model.spec.vocab <= states else LIKELIEST


def described(path: Path) -> str:
    """What a trace file holds, as a sentence; raises WrongCall."""
    trace, about = trace_file.read(path)
    of = f"{about.text}" if about.text else "ids drawn at random"
    return (
        f"{path}: {len(trace.tokens)} tokens of {of} through {about.source.file}, "
        f"{len(trace.kept)} of them with their states, {len(about.whole)} with all {about.vocab} logits; "
        f"{path.stat().st_size / 1e6:.3g} MB"
    )


def _about(model: Model, chosen: Chosen, seed: int) -> About:
    facts = model.facts()
    return About(
        schema=trace_file.SCHEMA,
        model=facts.name,
        version=facts.version,
        vocab=facts.vocab,
        ln_x_eps=facts.ln_x_eps,
        source=model.checkpoint.source(),
        text=chosen.text,
        bytes=chosen.bytes,
        seed=seed,
        whole=(),
        positions=(),
        tensors={},
        tools={name: version(name) for name in ("rwkv-export", "torch", "numpy")},
    )


def _choose(model: Model, count: int, *, text: Path | None, seed: int) -> Chosen:
    """Tokens of the text; ids at random where no text was named and none can be read with this vocabulary."""
    from exporter.vocabulary import encoded

    read, vocab = open_text(text), model.spec.vocab
    try:
        ids = np.array(encoded(model, read.content), np.int64)
        tokens = choose_from(ids, count, vocab=vocab, seed=seed)
    except (WrongCall, Missing):
        if text is not None:
            raise
        return Chosen(choose_tokens(count, vocab=vocab, seed=seed), "", 0)
    path = model.checkpoint.path
    tokenizer = open_tokenizer(kind_for(vocab), path if path.is_dir() else path.parent)
    return Chosen(tokens, read.name, sum(len(tokenizer.spell(token)) for token in tokens[1:]))
