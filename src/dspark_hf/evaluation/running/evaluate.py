"""One evaluation: the same prompts answered in several ways, interleaved, every round kept."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dspark_hf.data.cache.manifest import template_digest, weights_digest
from dspark_hf.data.encoding_file import has_chat_form
from dspark_hf.evaluation.figures.summary import summarize
from dspark_hf.evaluation.origin import provenance
from dspark_hf.evaluation.running.checks import check_prompts, check_rank, check_ways
from dspark_hf.evaluation.running.folder import RunFolder
from dspark_hf.evaluation.running.journal import Journal
from dspark_hf.evaluation.running.pieces import can_time, time_pieces_of
from dspark_hf.evaluation.running.precision import PrecisionCopies
from dspark_hf.evaluation.running.records import FORMAT, Call
from dspark_hf.evaluation.running.runs import Run
from dspark_hf.evaluation.running.settings import EvaluationSettings
from dspark_hf.evaluation.running.ties import TieFinder
from dspark_hf.evaluation.running.ways import PLAIN, Way
from dspark_hf.evaluation.tasks.loading import LoadedTask, Question
from dspark_hf.evaluation.tasks.prompts import pad_prompts, prompt_rows
from dspark_hf.modeling.fingerprint import public_name

_WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class _Batch:
    """Prompts that are asked together, turn by turn."""

    task: str
    temperature: float
    batch_size: int
    number: int  # over the whole evaluation, so that it is the same in every process
    questions: list[Question]

    @property
    def num_turns(self) -> int:
        return max(len(question.turns) for question in self.questions)

    @property
    def name(self) -> str:
        return f"{self.task}, T {self.temperature:g}, batch {self.batch_size}, {self.number}"


def evaluate(
    target: Any,
    tokenizer: Any,
    tasks: Sequence[LoadedTask],
    ways: Sequence[Way],
    settings: EvaluationSettings | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    report: Callable[[int, int, str], None] | None = None,
    rank: int = 0,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Answer the prompts of several tasks in several ways.

    Every call is one batch of prompts and all ways, one after the other in one process, in an order that rotates,
    after a warm-up. In a conversation the plain answer (the first that ran, without plain runs) stands before the
    next question, for all ways alike. What is done is on the disk, so a stopped evaluation goes on: with the same
    weights, prompts, settings, software and machine, or not at all. Several processes share the calls; the last to
    end writes the summary.

    Args:
        target (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        tasks (`Sequence[LoadedTask]`): What is asked, see [`load_tasks`].
        ways (`Sequence[Way]`): How it is answered; ratios and identical ids are against plain `generate()`, where that
            is among them.
        settings ([`EvaluationSettings`], *optional*): How to run.
        out (`str` or `Path`, *optional*): Folder of the records and the summary, see [`RunFolder`]; without one,
            nothing is kept.
        resume (`bool`, *optional*, defaults to `False`): Whether to go on with what is there.
        report (`Callable`, *optional*): Called after each call with those done, all of this process, and its name.
        rank (`int`, *optional*, defaults to 0): Which of several processes this is.
        num_processes (`int`, *optional*, defaults to 1): How many there are.

    Returns:
        `dict`: The summary, see [`~evaluation.figures.summary.summarize`]; with several processes that of what is
        done.

    Raises:
        `ValueError`: If there is nothing to ask or no way, two ways have one name or one has the baseline's, a way
            takes none of the calls, drafts shall be made to stand without a plain run, the chat template does not know
            an option that is given or refuses a prompt, a prompt has no tokens or too many, there is no such process,
            or the folder holds something else.
    """
    settings = settings or EvaluationSettings()
    check_ways(tasks, ways, settings)
    check_rank(rank, num_processes)
    check_prompts(tasks, target, tokenizer, settings)
    folder = RunFolder(out)
    folder.check_place()
    batches = list(_batches(tasks, settings))
    made_with = _made_with(target, tokenizer, tasks, ways, settings, num_processes)
    # A conversation that was broken off between its turns is not whole.
    has_form = made_with["template"] is not None
    made_with["num_calls"] = sum(batch.num_turns if has_form else 1 for batch in batches)
    mine = [batch for index, batch in enumerate(batches) if index % num_processes == rank]
    copies = PrecisionCopies(target)
    calls: list[Call] = []
    with Journal(folder.records(rank), {**made_with, "rank": rank}, resume=resume) as kept:
        runner = _Runner(target, tokenizer, ways, settings, copies, rank)
        for index, batch in enumerate(mine):
            answered = runner.answer(batch, kept)
            calls += answered
            if out is not None:
                # At once: of a run that was killed, too, a report shows the text.
                folder.add_tokens(answered, tokenizer)
            if report is not None:
                report(index + 1, len(mine), batch.name)
    if out is None:
        return {"made_with": made_with, **summarize(calls, made_with["ways"], task_facts(made_with))}
    return folder.finish(provenance(target.device))


def task_facts(made_with: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What tables say of each task besides its figures, by name, from what a run was `made_with`."""
    return {task["name"]: task for task in made_with["tasks"]}


def place_among_processes() -> tuple[int, int]:
    """Rank and number of the processes that a launcher such as `torchrun` started; `(0, 1)` without one.

    Raises:
        `ValueError`: If its variables are no numbers.
    """
    given = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        rank, num_processes = map(int, given)
    except ValueError:
        raise ValueError(f"RANK and WORLD_SIZE must be whole numbers, got {given[0]!r} and {given[1]!r}.") from None
    return rank, num_processes


class _Runner:
    """Answers batches, each turn in all ways."""

    def __init__(self, target, tokenizer, ways, settings, copies, rank) -> None:
        self._target, self._tokenizer, self._ways = target, tokenizer, ways
        self._settings, self._rank = settings, rank
        self._has_form = settings.template and has_chat_form(tokenizer)
        self._finder = TieFinder(copies, target.dtype)
        self._warm: set[tuple[float, int]] = set()

    def answer(self, batch: _Batch, kept: Journal) -> list[Call]:
        """All turns of a batch; those that are kept already are not made again."""
        calls, said = [], {question.index: [] for question in batch.questions}
        for turn in range(batch.num_turns):
            asked = [question for question in batch.questions if turn < len(question.turns)]
            if turn > 0 and not self._has_form:
                break  # raw text is no conversation
            for question in asked:
                said[question.index] = [*said[question.index], *question.turns[turn]]
            make = partial(self._call, batch, turn, asked, said)
            call = Call.from_dict(kept.part(f"{batch.name}, turn {turn}", make))
            first = next(iter(call.runs)) if PLAIN not in call.runs else PLAIN
            answers = self._tokenizer.batch_decode(call.runs[first].ids, skip_special_tokens=True)
            for question, answer in zip(asked, answers, strict=True):
                said[question.index].append({"role": "assistant", "content": answer})
            calls.append(call)
        return calls

    def _call(self, batch: _Batch, turn: int, asked: list[Question], said: dict[int, list]) -> dict[str, Any]:
        settings = self._settings
        rows = prompt_rows(
            [said[question.index] for question in asked],
            self._tokenizer, thinking=settings.thinking, reasoning_effort=settings.reasoning_effort,
            template=self._has_form,
        )  # fmt: skip
        inputs = pad_prompts(rows, self._tokenizer)
        decoding = settings.decoding(batch.temperature)
        ways = [way for way in self._ways if way.takes(batch.temperature, batch.batch_size)]
        self._warm_up(batch, inputs, ways, decoding)
        start = (batch.number + turn) % len(ways)
        order = [*ways[start:], *ways[:start]]
        # Drafts are made to stand by what the plain run answered.
        order.sort(key=lambda way: way.acceptance is not None)
        seed, runs = settings.seed + batch.number, {}
        for way in order:
            texts = (
                [row + answer for row, answer in zip(rows, runs[PLAIN].ids, strict=True)] if PLAIN in runs else None
            )
            runs[way.name] = way.run(self._target, inputs, decoding, seed=seed, texts=texts)
        prompts = [
            {"index": question.index, "category": question.category, "ids": row}
            for question, row in zip(asked, rows, strict=True)
        ]
        differences = self._differences(rows, runs) if batch.temperature == 0 else {}
        pieces = self._pieces(rows, runs, ways) if settings.time_pieces else {}
        call = Call(batch.task, turn, batch.temperature, batch.batch_size, seed, prompts, runs, differences, pieces,
                    self._rank)  # fmt: skip
        return call.as_dict()

    def _warm_up(self, batch: _Batch, inputs: dict, ways: Sequence[Way], decoding: Any) -> None:
        """Run every way for a few tokens, so that no timed run pays for first-time work."""
        if (batch.temperature, batch.batch_size) in self._warm:
            return
        self._warm.add((batch.temperature, batch.batch_size))
        short = replace(decoding, max_new_tokens=min(_WARM_UP_TOKENS, decoding.max_new_tokens))
        for way in ways:
            if way.acceptance is None:
                way.run(self._target, inputs, short, seed=0)

    def _differences(self, rows: list[list[int]], runs: dict[str, Run]) -> dict[str, list]:
        """Where greedy ids part from the plain run's; ways of another dtype round otherwise and are not looked at."""
        if PLAIN not in runs:
            return {}
        same = [way.name for way in self._ways if way.target is None and way.name in runs and way.name != PLAIN]
        found = {}
        for name in same:
            pairs = zip(rows, runs[PLAIN].ids, runs[name].ids, strict=True)
            ones = [self._finder.examine(row, plain, other) for row, plain, other in pairs]
            found[name] = [None if one is None else asdict(one) for one in ones]
        return found

    def _pieces(self, rows: list[list[int]], runs: dict[str, Run], ways: Sequence[Way]) -> dict[str, dict]:
        """Times of the passes of the drafters that draft all by themselves."""
        alone = [
            way for way in ways if way.drafter is not None and way.about["speculation"].get("prompt_lookup") is False
        ]
        if not can_time(self._target):
            return {}
        return {way.name: asdict(time_pieces_of(self._target, way.drafter, rows, runs[way.name])) for way in alone}


def _batches(tasks: Sequence[LoadedTask], settings: EvaluationSettings) -> Iterator[_Batch]:
    number = 0
    for task in tasks:
        for temperature in settings.temperatures:
            for size in settings.batch_sizes:
                # A batch has one category, so that its figures are the category's.
                for category in dict.fromkeys(question.category for question in task.questions):
                    questions = [question for question in task.questions if question.category == category]
                    for start in range(0, len(questions), size):
                        yield _Batch(task.name, temperature, size, number, questions[start : start + size])
                        number += 1


def _made_with(target, tokenizer, tasks, ways, settings, num_processes) -> dict[str, Any]:
    """What the figures depend on, so that a run that goes on can be told from another one."""
    # Processes of one machine have a device each.
    source = provenance(target.device.type)
    has_form = settings.template and has_chat_form(tokenizer)
    return {
        "format": FORMAT,
        "target": public_name(target.name_or_path) or type(target).__name__,
        "weights": weights_digest(target),
        "dtype": str(target.dtype).removeprefix("torch."),
        "attention": getattr(target.config, "_attn_implementation", None),
        "template": template_digest(tokenizer)[:16] if has_form else None,
        "settings": asdict(settings),
        "tasks": [task.describe() for task in tasks],
        "ways": {way.name: way.about for way in ways},
        "num_processes": num_processes,
        **{key: source[key] for key in ("commit", "versions", "machine")},
    }
