"""What precisions of a checkpoint cost: artifacts read a text and answer questions beside it; judges by KL alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import runtimes
from exporter.progress import Progress, silent
from runtimes import manifest
from runtimes.contract import Artifact
from runtimes.errors import WrongCall
from runtimes.session import stored_initial_state
from runtimes.tokenizer import open_tokenizer
from validation import machine, outcome, runner
from validation.golden import Find, Golden, Open, find_checkpoint, open_reference, same_checkpoint
from validation.outcome import Quality, Results, Task
from validation.quality import TOKENS, Text, open_text, require_tokens
from validation.rows import Keep, forget
from validation.runner import Case
from validation.tasks import (
    Answer,
    Encoded,
    Questions,
    answer_all,
    compare_answers,
    encode,
    read_lambada,
    read_mmlu,
)
from validation.trace import FEWEST, beginning


def evaluate(
    artifacts: Sequence[Path],
    *,
    on: Sequence[str] | None = None,
    checkpoint: Path | None = None,
    text: Path | None = None,
    tokens: int = TOKENS,
    lambada: Path | None = None,
    mmlu: Path | None = None,
    limit: int | None = None,
    keep: Keep = forget,
    progress: Progress = silent,
    find: Find = find_checkpoint,
    reference: Open = open_reference,
) -> Results:
    """One quality row for each artifact and place: the text, and the files of questions that are named.

    artifacts, on, checkpoint, keep, find, reference: as in `validate`
    text, tokens:  what is read, and how many of its tokens are predicted
    lambada, mmlu: as validation.tasks reads them; of each the first `limit` examples, all where None

    Raises WrongCall for a file that cannot be read, and what `validate` raises.
    """
    require_tokens(tokens)
    if limit is not None and limit < 1:
        raise WrongCall(f"cannot answer {limit} examples", hint="use 1 or more, better hundreds")
    chosen = open_text(text)
    files = [read(path, limit) for read, path in ((read_lambada, lambada), (read_mmlu, mmlu)) if path]
    locate = partial(same_checkpoint, checkpoint) if checkpoint else find
    exam = Exam(files, Golden(FEWEST, 0, locate, reference, progress=progress), progress)
    rows = []
    for case in runner.list_cases(artifacts, on):
        run: Callable[[], Quality] = partial(_evaluate, case, exam, chosen, tokens)
        rows.append(runner.attempt(case, run, partial(runner.unread, chosen.name)))
        keep(rows[-1])
    return Results(outcome.SCHEMA, machine.describe(), quality=tuple(rows), made=machine.now())


@dataclass
class Exam:
    """Questions, and what each checkpoint answered, which is asked for once."""

    files: Sequence[Questions]
    golden: Golden
    progress: Progress
    _answers: dict[tuple[str, float, str | None, str], tuple[Answer, ...]] = field(default_factory=dict, init=False)

    def take(self, case: Case, artifact: Artifact) -> tuple[Task, ...]:
        """The artifact's answers to every file, beside its checkpoint's."""
        document, found = artifact.manifest, []
        tokenizer = open_tokenizer(document.tokenizer.kind, artifact.folder)
        for questions in self.files:
            examples = encode(questions, tokenizer, document.model.vocab)
            expected = self._expected(artifact, questions, examples)
            with closing(runtimes.open_on(artifact, case.place)) as session:
                what = f"{case.identity.artifact} on {case.place} answering {questions.file}"
                start = session.initial_state()
                answers = answer_all(session, start, examples, what=what, progress=self.progress)
            found.append(compare_answers(questions, expected, answers))
        return tuple(found)

    def _expected(self, artifact: Artifact, questions: Questions, examples: Sequence[Encoded]) -> tuple[Answer, ...]:
        document = artifact.manifest
        hashes = {file.path: file.sha256 for file in document.files}
        tuned = hashes.get(document.initial_state or "")
        key = (document.source.sha256, document.model.ln_x_eps, tuned, questions.task)
        if key not in self._answers:
            with closing(self.golden.reference(artifact)) as session:
                start = session.write_state(beginning(session, stored_initial_state(artifact)))
                what = f"{document.source.file} answering {questions.file}"
                self._answers[key] = answer_all(session, start, examples, what=what, progress=self.progress)
        return self._answers[key]


def _evaluate(case: Case, exam: Exam, text: Text, tokens: int) -> Quality:
    row = runner.read_beside(case, exam.golden, text, tokens, exam.progress)
    return replace(row, tasks=exam.take(case, manifest.open_artifact(case.folder)))
