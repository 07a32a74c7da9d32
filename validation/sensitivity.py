"""Quantises one matrix of a model at a time and reads a text with each: what costs how much. It exports nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from exporter import simulation
from exporter.model import Model
from exporter.progress import Advance, Progress, silent
from exporter.vocabulary import encoded
from runtimes.errors import Missing, WrongCall
from validation.quality import TOKENS, Text, require_tokens
from validation.sensitivity_reader import Reader, Stored
from validation.sensitivity_results import ALL, KEPT, SCHEMA, Sensitivity, Subject, continued, recommended

TOOLS = ("rwkv-export", "torch", "numpy", "onnxruntime", "torchao")
GROW = 0.25

Save = Callable[[Sensitivity], None]


def measure(
    model: Model,
    text: Text,
    *,
    precision: str,
    target: str | None = None,
    tokens: int = TOKENS,
    grow: float = GROW,
    known: Path | None = None,
    save: Save = lambda document: None,
    progress: Progress = silent,
) -> Sensitivity:
    """Read a text with each matrix quantised alone, each layer, everything, and everything but what is worth keeping.

    target: whose quantiser; the first that has the precision where None
    tokens: of the text that are predicted
    grow:   by what part of their quantised size all matrices may grow by keeping some
    known:  a document of the same measurement, perhaps unfinished, which is continued where it exists
    save:   is given the document after each effect, so that an interruption loses one at most

    The model is in memory as float32, and the logits of the text. Raises WrongCall, or Missing for a text that does not
    fit the vocabulary.
    """
    if not 0 < grow <= 10:
        raise WrongCall(f"cannot let matrices grow by {grow:g} of their size", hint="0.1 is a tenth")
    name, found = simulation.find(precision, target)
    subject = Subject(
        model=model.checkpoint.name,
        version=model.spec.version,
        sha256=model.checkpoint.sha256(),
        ln_x_eps=model.spec.ln_x_eps,
        target=name,
        precision=precision,
        text=text.name,
        text_sha256=hashlib.sha256(text.content.encode()).hexdigest(),
        tokens=tokens,
        tools={tool: version(tool) for tool in TOOLS},
    )
    document = continued(Sensitivity(SCHEMA, subject, found.says, found.wide, grow), known)
    reader = Reader(model, found, _tokens(model, text, tokens), progress)
    document = replace(document, perplexity=reader.perplexity)
    parts = reader.parts()
    count = sum(len(names) + 1 for names in parts.values()) + 2
    with progress(f"reading {text.name} with one matrix quantised at a time", count) as advance:
        return _Measurement(reader, document, save, advance).run(parts)


def _tokens(model: Model, text: Text, count: int) -> Sequence[int]:
    require_tokens(count)
    ids = encoded(model, text.content)[: count + 1]
    if len(ids) <= count:
        raise WrongCall(f"{text.name} has {len(ids)} tokens, too few to predict {count}", hint="name a longer text")
    if max(ids) >= model.spec.vocab:
        raise Missing(f"{text.name} has token {max(ids)}, outside this model's vocabulary of {model.spec.vocab}")
    return ids


class _Measurement:
    """A document that grows; what it has already is not measured again."""

    def __init__(self, reader: Reader, document: Sensitivity, save: Save, advance: Advance) -> None:
        self.reader, self.document, self.save, self.advance = reader, document, save, advance

    def run(self, parts: dict[str, list[str]]) -> Sensitivity:
        """Matrices of a layer, the layer, and so on; then all matrices, and all but those worth keeping."""
        for part, names in parts.items():
            stored: dict[str, Stored | None] = {}  # of one layer at a time
            for name in names:
                self._add(name.removesuffix(".weight"), [name], stored)
            self._add(part, names if part else [], stored)
        every = [name for names in parts.values() for name in names]
        self._add(ALL, every, {})
        if self.document.keep is None:
            keep = recommended(self.document)
            self.document = replace(self.document, keep=keep)
        keep = self.document.keep or ()
        self._add(KEPT, [name for name in every if name.removesuffix(".weight") not in keep] if keep else [], {})
        self.save(self.document)
        return self.document

    def _add(self, name: str, parameters: Sequence[str], stored: dict[str, Stored | None]) -> None:
        """The effect of these parameters together, none of which is stored where all stay as they are."""
        if parameters and self.document.find(name) is None:
            for each in parameters:
                if each not in stored:
                    stored[each] = self.reader.stored(each)
            found = {each: made for each in parameters if (made := stored[each])}
            if found:
                effect = self.reader.effect(name, found)
                self.document = replace(self.document, effects=(*self.document.effects, effect))
                self.save(self.document)
        self.advance(1)
