"""Sampling text from a session: temperature and nucleus, seeded; it knows no chat format and judges no quality."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtimes import manifest, open_session
from runtimes.contract import Array, Session
from runtimes.errors import CheckFailed, WrongCall
from runtimes.tokenizer import END_OF_TEXT, Decoder, open_tokenizer


@dataclass
class Spent:
    """What a generation took so far, by the session's own times: seconds of the prompt, and of each token fed since."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


def nucleus(logits: Array, *, temperature: float, top_p: float) -> Array:
    """Probabilities (vocab,) float64 to draw the next token from.

    Softmax of logits / temperature, cut to the smallest set of likeliest tokens whose sum reaches `top_p`
    (Holtzman et al. 2020, arXiv:1904.09751), renormalised. Temperature 0 puts everything on the greedy token.
    """
    if not np.isfinite(logits).all():
        raise CheckFailed("the logits are not finite", hint="`rwkv-export validate` tells where it goes wrong")
    probabilities: Array = np.zeros(len(logits))
    if temperature == 0:
        probabilities[np.argmax(logits)] = 1
        return probabilities
    scaled = np.asarray(logits, np.float64)
    weights = np.exp((scaled - scaled.max()) / temperature)
    probabilities = weights / weights.sum()
    order = np.argsort(-probabilities, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(probabilities[order])[:-1]])  # mass of the likelier tokens
    probabilities[order[before >= top_p]] = 0
    probabilities /= probabilities.sum()
    return probabilities


def generate(
    session: Session,
    prompt_ids: Sequence[int],
    *,
    tokens: int,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int | None = None,
    stop: Collection[int] = (END_OF_TEXT,),
    spent: Spent | None = None,
) -> Iterator[int]:
    """Up to `tokens` token ids that continue the prompt; ends early at, and without, a token of `stop`.

    The same seed gives the same tokens. `spent` grows as they come. Raises WrongCall for an empty prompt or a setting
    out of range.
    """
    _check(len(prompt_ids), tokens, temperature, top_p)
    random, spent = np.random.default_rng(seed), spent or Spent()
    step = session.prefill(prompt_ids, session.initial_state())
    spent.prompt_tokens, spent.prompt_seconds = len(prompt_ids), step.seconds
    for index in range(tokens):
        probabilities = nucleus(step.logits, temperature=temperature, top_p=top_p)
        token = int(random.choice(len(probabilities), p=probabilities))
        if token in stop:
            return
        yield token
        if index + 1 < tokens:
            step = session.step(token, step.state)
            spent.tokens, spent.seconds = spent.tokens + 1, spent.seconds + step.seconds


def _check(prompt_length: int, tokens: int, temperature: float, top_p: float) -> None:
    if not prompt_length:
        raise WrongCall("the prompt is empty", hint=f"start from [{END_OF_TEXT}], the end-of-text token")
    if not temperature >= 0:
        raise WrongCall(f"temperature is {temperature}, expected 0 (greedy) or more")
    if not 0 < top_p <= 1:
        raise WrongCall(f"top_p is {top_p}, expected more than 0 and at most 1")
    if tokens < 0:
        raise WrongCall(f"tokens is {tokens}, expected 0 or more")


def continue_text(
    artifact: str | Path,
    prompt: str,
    *,
    on: str | None = None,
    tokens: int = 200,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int | None = None,
    spent: Spent | None = None,
) -> Iterator[str]:
    """Pieces of text that continue `prompt`, as they are generated; an empty prompt starts a new document.

    Opens the artifact folder on `on` as runtimes.open_session does; raises what that, open_tokenizer and generate do.
    """
    folder = Path(artifact)
    tokenizer = open_tokenizer(manifest.read(folder).tokenizer.kind, folder)
    prompt_ids = tokenizer.encode(prompt) or [END_OF_TEXT]
    decoder = Decoder(tokenizer)
    with closing(open_session(folder, on)) as session:
        for token in generate(
            session, prompt_ids, tokens=tokens, temperature=temperature, top_p=top_p, seed=seed, spent=spent
        ):
            yield decoder.feed(token)
    yield decoder.flush()
