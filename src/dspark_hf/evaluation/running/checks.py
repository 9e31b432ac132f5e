"""What is looked at before the first call of an evaluation, which may take hours."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from dspark_hf.data.encoding_file import has_chat_form
from dspark_hf.data.template_options import check_template_options
from dspark_hf.evaluation.figures.summary import ALL_TASKS
from dspark_hf.evaluation.running.settings import EvaluationSettings
from dspark_hf.evaluation.running.ways import PLAIN, Way
from dspark_hf.evaluation.tasks.loading import LoadedTask
from dspark_hf.evaluation.tasks.prompts import prompt_rows


def check_ways(tasks: Sequence[LoadedTask], ways: Sequence[Way], settings: EvaluationSettings) -> None:
    """Whether all `ways` can answer `tasks` under these `settings`, and tables can tell them apart.

    Raises:
        `ValueError`: If not.
    """
    if not tasks or not ways:
        raise ValueError(f"An evaluation needs a task and a way to generate, got {len(tasks)} and {len(ways)}.")
    names = [way.name for way in ways]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"Two ways to generate are called {twice[0]!r}. Give a drafter another name, NAME=PLACE, and the "
            "other ways once."
        )
    if any(way.name == PLAIN and way.about["kind"] != "plain" for way in ways):
        raise ValueError(f"{PLAIN!r} is the baseline's name. Give the drafter another one: NAME=PLACE.")
    if any(task.name == ALL_TASKS for task in tasks):
        raise ValueError(f"{ALL_TASKS!r} is what tables call all of them. Give the task another name: NAME=FILE.")
    kinds = [(temperature, size) for temperature in settings.temperatures for size in settings.batch_sizes]
    idle = [way for way in ways if not any(way.takes(*kind) for kind in kinds)]
    if idle:
        limits = {"temperature 0": idle[0].greedy_only, "batch size 1": idle[0].one_row}
        raise ValueError(
            f"{idle[0].name!r} would sit out the whole evaluation: it takes "
            f"{' and '.join(name for name, holds in limits.items() if holds)} only, got temperatures "
            f"{list(settings.temperatures)} and batch sizes {list(settings.batch_sizes)}. Add that, or leave it out."
        )
    if alone := [kind for kind in kinds if not any(way.takes(*kind) for way in ways)]:
        temperature, size = alone[0]
        raise ValueError(f"No way takes T {temperature:g} at batch size {size}. Add plain runs, or a drafter.")
    if any(way.acceptance is not None for way in ways) and PLAIN not in names:
        raise ValueError(
            "Drafts that are made to stand need the plain run, which says what stands. Do not leave it out."
        )
    if settings.time_pieces and PLAIN not in names:
        raise ValueError("time_pieces compares with the plain run. Do not leave it out.")


def check_rank(rank: int, num_processes: int) -> None:
    """Whether there is a process of this `rank` among `num_processes`.

    Raises:
        `ValueError`: If not: it would answer nothing.
    """
    if not 0 <= rank < num_processes:
        raise ValueError(
            f"Of {num_processes} processes there is none of rank {rank}, and its calls would be nobody's. Start it by "
            "torchrun, or unset RANK and WORLD_SIZE."
        )


def check_prompts(tasks: Sequence[LoadedTask], target: Any, tokenizer: Any, settings: EvaluationSettings) -> None:
    """Encode the first turns of `tasks` as `settings` say, so that no prompt stops a run halfway.

    Raises:
        `ValueError`: If the `tokenizer`'s chat template does not know an option or refuses a prompt, or one has no
            tokens, or more than a `target` with a table of positions can take.
    """
    check_template_options(tokenizer, settings.thinking, settings.reasoning_effort)
    has_form = settings.template and has_chat_form(tokenizer)
    longest = length_of_table(target)
    for task in tasks:
        for question in task.questions:
            try:
                (row,) = prompt_rows([question.turns[0]], tokenizer, template=has_form)
                check_length(len(row), settings.max_new_tokens, longest)
            except ValueError as error:
                raise ValueError(f"{task.name}, prompt {question.index}: {error}") from error


def check_length(num_tokens: int, max_new_tokens: int, longest: int | None) -> None:
    """Whether a prompt of `num_tokens` and `max_new_tokens` behind it are at most the `longest` text of a target.

    Raises:
        `ValueError`: If they are more.
    """
    # The last token of an answer is not read.
    if longest is not None and num_tokens + max_new_tokens - 1 > longest:
        raise ValueError(
            f"It has {num_tokens} tokens, and with {max_new_tokens} of an answer there are more than the target's "
            f"table of positions has, {longest}. Leave it out, or let answers be shorter."
        )


def length_of_table(target: Any) -> int | None:
    """Positions that a `target` has an entry of a table for, as GPT-2 has; `None` where positions are computed."""
    longest = getattr(target.config.get_text_config(), "max_position_embeddings", None)
    tables = [one for one in target.modules() if isinstance(one, nn.Embedding)]
    tables = [one for one in tables if one is not target.get_input_embeddings()]
    # Some have a few entries more, in front.
    has_table = longest is not None and any(longest <= one.num_embeddings <= longest + 2 for one in tables)
    return longest if has_table else None
