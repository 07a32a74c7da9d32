"""Files of questions with known answers, and how a session answers them; it has no questions of its own.

As lm-evaluation-harness has them, without examples before the question. lambada_openai: the last word of a text, right
where each of its tokens is the greedy one. mmlu: four choices, right where the letter of the right one is likeliest.
https://github.com/EleutherAI/lm-evaluation-harness/tree/main/lm_eval/tasks
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import log_softmax

from exporter.progress import Progress, silent
from runtimes.contract import Session, State
from runtimes.errors import Missing, WrongCall
from runtimes.tokenizer import END_OF_TEXT, Tokenizer
from validation.outcome import Task

LETTERS = "ABCD"
LARGEST = 1 << 28
"""Bytes of a file of questions."""


class Example(NamedTuple):
    """A context, how it may go on, and which of that is right."""

    context: str
    endings: tuple[str, ...]
    answer: int


class Encoded(NamedTuple):
    """An example in tokens; neither context nor endings are empty."""

    context: tuple[int, ...]
    endings: tuple[tuple[int, ...], ...]
    answer: int


class Answer(NamedTuple):
    """What a session makes of an example.

    chosen:  the likeliest ending; for a single one 0 where each of its tokens is greedy, else -1
    right:   whether that is the answer
    loss:    -log of the probability of the right ending, nats
    """

    chosen: int
    right: bool
    loss: float


@dataclass(frozen=True)
class Questions:
    """A file that was read. task: "lambada" or "mmlu"."""

    task: str
    file: str
    sha256: str
    examples: tuple[Example, ...]


def read_lambada(path: Path, limit: int | None = None) -> Questions:
    """JSON lines with "text", whose last word is asked for; raises WrongCall naming the line that does not fit."""
    return _read("lambada", path, lambda text: map(_last_word, _json_lines(text)), limit)


def read_mmlu(path: Path, limit: int | None = None) -> Questions:
    """Questions with four choices; raises WrongCall naming the line that does not fit.

    .jsonl: "question", "choices" (four), "answer" (0 to 3, or a letter), and "subject" if there is one
    .csv:   the columns question, A, B, C, D, answer, in this order and without a header, or named by one
    """
    rows = _csv_rows if path.suffix.lower() == ".csv" else _json_lines
    return _read("mmlu", path, lambda text: map(_four_choices, rows(text)), limit)


def encode(questions: Questions, tokenizer: Tokenizer, vocab: int) -> tuple[Encoded, ...]:
    """The examples in tokens, the ending's being those that the whole has beyond the context's.

    An empty context becomes the end-of-text token. Raises Missing where a token is outside the vocabulary.
    """
    found = []
    for context, endings, answer in questions.examples:
        start = tuple(tokenizer.encode(context)) if context else ()
        ends = tuple(tuple(tokenizer.encode(context + ending)[len(start) :]) for ending in endings)
        if not all(ends):
            raise WrongCall(f"{questions.file}: the ending {endings[ends.index(())]!r} has no token of its own")
        if (largest := max(*start, *(token for end in ends for token in end), 0)) >= vocab:
            raise Missing(f"{questions.file} has token {largest}, outside this model's vocabulary of {vocab}")
        found.append(Encoded(start or (END_OF_TEXT,), ends, answer))
    return tuple(found)


def answer_all(
    session: Session, start: State, examples: Sequence[Encoded], *, what: str, progress: Progress = silent
) -> tuple[Answer, ...]:
    """What a session answers, each example from the state `start`."""
    with progress(what, len(examples)) as advance:
        return tuple(_answer(session, start, example, advance) for example in examples)


def compare_answers(questions: Questions, reference: Sequence[Answer], answers: Sequence[Answer]) -> Task:
    """Both sets of answers to the same questions, summed up."""
    accuracy, expected = (float(np.mean([answer.right for answer in each])) for each in (answers, reference))
    count, words = len(answers), questions.task == "lambada"
    perplexity, golden = (float(np.exp(np.mean([answer.loss for answer in each]))) for each in (answers, reference))
    return Task(
        task=questions.task,
        file=questions.file,
        sha256=questions.sha256,
        examples=count,
        accuracy=accuracy,
        error=math.sqrt(accuracy * (1 - accuracy) / (count - 1)) if count > 1 else None,
        reference_accuracy=expected,
        same=float(np.mean([one.chosen == other.chosen for one, other in zip(answers, reference, strict=True)])),
        perplexity=perplexity if words else None,
        reference_perplexity=golden if words else None,
    )


def _answer(session: Session, start: State, example: Encoded, advance: Callable[[int], None]) -> Answer:
    context = session.prefill(example.context, start)
    losses, greedy = [], []
    for ending in example.endings:
        step, loss, best = context, 0.0, True
        for index, token in enumerate(ending):
            step = session.step(ending[index - 1], step.state) if index else step
            loss -= float(log_softmax(step.logits.astype(np.float64))[token])
            best = best and int(step.logits.argmax()) == token
        losses.append(loss)
        greedy.append(best)
    advance(1)
    chosen = int(np.argmin(losses)) if len(losses) > 1 else 0 if greedy[0] else -1
    return Answer(chosen, chosen == example.answer, losses[example.answer])


def _read(task: str, path: Path, parse: Callable[[str], Iterator[Example]], limit: int | None = None) -> Questions:
    try:
        if path.stat().st_size > LARGEST:
            raise WrongCall(f"{path} has {path.stat().st_size} bytes, {LARGEST} at most are read")
        content = path.read_bytes()
        text = content.decode("utf-8")
    except OSError as error:
        raise WrongCall(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise WrongCall(f"{path} is not UTF-8 text: byte {error.start}") from error
    examples: list[Example] = []
    try:
        for example in parse(text):
            examples.append(example)
            if limit and len(examples) == limit:
                break
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, csv.Error) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise WrongCall(
            f"{path}, example {len(examples) + 1}: {why}", hint="docs/quality.md has the formats"
        ) from error
    if not examples:
        raise WrongCall(f"{path} holds no examples")
    return Questions(task, path.name, hashlib.sha256(content).hexdigest(), tuple(examples))


def _json_lines(text: str) -> Iterator[Mapping[str, Any]]:
    for line in text.splitlines():
        if line.strip():
            document = json.loads(line)
            if not isinstance(document, dict):
                raise TypeError(f"{line[:40]!r} is no object")
            yield document


def _csv_rows(text: str) -> Iterator[Mapping[str, Any]]:
    names = ["question", *LETTERS, "answer"]
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    if rows and "question" in rows[0]:
        names, rows = rows[0], rows[1:]
    for row in rows:
        cells = dict(zip(names, row, strict=True))
        yield {**cells, "choices": [cells[letter] for letter in LETTERS]}


def _last_word(document: Mapping[str, Any]) -> Example:
    """The split of lambada_openai: at single spaces, the space going with the word."""
    context, space, word = _text(document["text"]).rpartition(" ")
    if not space or not word:
        raise ValueError("its text has no last word, or ends in a space")
    kept = context.rstrip()
    return Example(kept, (context[len(kept) :] + space + word,), 0)


def _four_choices(document: Mapping[str, Any]) -> Example:
    """The prompt of mmlu: the subject if there is one, the question, the choices, the word Answer."""
    question, choices = _text(document["question"]).strip(), [_text(choice) for choice in document["choices"]]
    if len(choices) != len(LETTERS):
        raise ValueError(f"it has {len(choices)} choices, expected {len(LETTERS)}")
    answer, subject = str(document["answer"]).strip(), _text(document.get("subject") or "").replace("_", " ")
    index = LETTERS.find(answer.upper()) if answer.upper() in list(LETTERS) else ["0", "1", "2", "3"].index(answer)
    about = f"The following are multiple choice questions (with answers) about {subject}.\n\n" if subject else ""
    lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    return Example(f"{about}{question}\n{lines}\nAnswer:", tuple(f" {letter}" for letter in LETTERS), index)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value
