"""Training text in the target's own words: answers to given prompts, or to prompts that it invents.

A drafter imitates the target, so it learns from what the target says, not from what a data set says. Lines are
appended and flushed batch by batch: a run can be stopped at any time, used as it is, and resumed.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import pairwise

from tqdm import tqdm

from dspark_hf.data.regeneration.answer_file import AnswerFile, FailedFile
from dspark_hf.data.regeneration.answers import Answerer, has_text
from dspark_hf.data.regeneration.questions import first_prompts, prompts_in, source_name, unanswered
from dspark_hf.data.regeneration.synthesis import PromptSampler, load_openings

_POOL = 4  # batches of prompts drawn at once, so that a batch can be filled with prompts of similar length


def synthesize(
    target,
    tokenizer,
    num_samples: int,
    out_path: str | os.PathLike,
    *,
    seed: int = 0,
    batch_size: int = 128,
    max_new_tokens: int = 160,
    max_prompt_tokens: int = 40,
    top_k: int = 40,
    openings: str | os.PathLike | None = None,
    temperature: float = 0.0,
    thinking: bool | None = None,
    reasoning_effort: str | None = None,
    exclude: str | os.PathLike | None = None,
    without_loops: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> int:
    """Let the target invent user prompts and answer them.

    Args:
        target ([`~transformers.PreTrainedModel`]): The model that writes both sides.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer, with a chat template.
        num_samples (`int`): Conversations wanted in the file, those of a resumed file included. They are the first
            usable ones drawn, of whatever length.
        out_path (`str` or `os.PathLike`): JSONL file of `{"messages": [...], "complete": bool}` lines. What made it is
            written beside it, to `<out_path>.provenance.json`.
        seed (`int`): Seed of the prompts, and of the answers if `temperature` is above 0.
        batch_size (`int`): Answers written at once.
        max_new_tokens (`int`): Longest answer; `complete` is false where it cuts an answer off.
        max_prompt_tokens (`int`): Longest invented prompt.
        top_k (`int`): Tokens that a prompt may draw from at each step.
        openings (`str` or `os.PathLike`, *optional*): File of beginnings of user turns, taken in turn
            ([`~data.regeneration.synthesis.load_openings`]). Left out, the target invents whole turns.
        temperature (`float`): Temperature of the answers; 0 for greedy ones.
        thinking (`bool`, *optional*): `enable_thinking` of the chat template; its own choice, if not given.
        reasoning_effort (`str`, *optional*): `reasoning_effort` of the chat template or the encoding file.
        exclude (`str` or `os.PathLike`, *optional*): JSONL file whose prompts must not occur, such as held-out data.
        without_loops (`bool`): Put conversations whose answer ends in one piece said over and over
            ([`~data.regeneration.loops.ends_in_loop`]) into `<out_path>.loops.jsonl`; they do not count.
        resume (`bool`): Continue an existing file, made with the same settings.
        progress (`bool`): Show a progress bar.

    Returns:
        `int`: Conversations in the file.

    Raises:
        `ValueError`: If a setting is out of range, the file exists and `resume` is off or was made otherwise, or the
            target keeps repeating prompts that it has given before, or no answer can be used.
    """
    _check_positive(
        num_samples=num_samples,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        top_k=top_k,
    )
    starts = load_openings(openings) if openings is not None else [""]
    sampler = PromptSampler(target, tokenizer, top_k=top_k, max_prompt_tokens=max_prompt_tokens, openings=starts)
    form = {"thinking": thinking, "reasoning_effort": reasoning_effort}
    answerer = Answerer(target, tokenizer, max_new_tokens=max_new_tokens, temperature=temperature, **form)
    settings = {
        "kind": "synthesize",
        **answerer.settings,
        "seed": seed,
        "batch_size": batch_size,
        "max_prompt_tokens": max_prompt_tokens,
        "top_k": top_k,
        "openings": starts,
        "exclude": source_name(exclude),
    }
    excluded = prompts_in(exclude)
    # Of the number asked for alone, so that a resumed run draws what an uninterrupted one would.
    num_drawn = min(_POOL * batch_size, num_samples)
    with AnswerFile(out_path, target.name_or_path, settings, resume=resume, without_loops=without_loops) as file:
        seen = excluded | first_prompts(file.records)
        with tqdm(total=num_samples, initial=file.num_lines, unit="conv", disable=not progress) as bar:
            while file.num_lines < num_samples:
                round_seed, num_before = _mix(seed, file.rounds_done), file.num_lines
                fresh = [p for p in sampler.sample(num_drawn, round_seed) if p not in seen]
                seen.update(fresh)
                while fresh and (missing := num_samples - file.num_lines):
                    # Chosen in the order drawn, before they are sorted by length: the last ones are no shorter.
                    wanted = [[{"role": "user", "content": prompt}] for prompt in fresh[:missing]]
                    _answer_all(wanted, answerer, file, batch_size, round_seed, bar)
                    fresh = fresh[missing:]
                # A round that the limit cut off is drawn again if the file is continued with a higher limit.
                if file.num_lines < num_samples:
                    file.end_round(found=file.num_lines - num_before)
        return file.num_lines


def regenerate(
    target,
    tokenizer,
    prompts: str | os.PathLike | Iterable,
    out_path: str | os.PathLike,
    *,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    thinking: bool | None = None,
    reasoning_effort: str | None = None,
    keep_special_tokens: bool = False,
    exclude: str | os.PathLike | None = None,
    without_loops: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> int:
    """Let the target answer given prompts; answers that the prompts' file holds are replaced by the target's own.

    Each user turn is answered in order. A conversation ends early where an answer was cut off by the limit. One that
    cannot be answered goes to `<out_path>.failed.jsonl` with its reason, and is tried again by a resumed run.

    Args:
        target ([`~transformers.PreTrainedModel`]): The model that answers.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        prompts (`str`, `os.PathLike` or iterable): As of [`~data.prompts.iterate_prompts`], or messages lists. Of
            conversations with the same prompt, the first is taken.
        out_path (`str` or `os.PathLike`): As in [`synthesize`].
        split (`str`, *optional*, defaults to `"train"`): Split of a dataset.
        limit (`int`, *optional*): Take so many prompts from the top.
        keep_special_tokens (`bool`, *optional*, defaults to `False`): Whether prompts that spell special tokens of the
            tokenizer, which can forge turns, are asked; otherwise they fail.
        seed, batch_size, max_new_tokens, temperature, exclude, without_loops, resume, progress: As in [`synthesize`].
        thinking, reasoning_effort: As in [`synthesize`].

    Returns:
        `int`: Conversations in the file.

    Raises:
        `ValueError`: As in [`synthesize`], and if not one conversation was answered, or a hundred in a row were not.
    """
    _check_positive(batch_size=batch_size, max_new_tokens=max_new_tokens, limit=limit)
    answerer = Answerer(
        target,
        tokenizer,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        thinking=thinking,
        reasoning_effort=reasoning_effort,
        keep_special_tokens=keep_special_tokens,
    )
    settings = {
        "kind": "regenerate",
        **answerer.settings,
        "seed": seed,
        "batch_size": batch_size,
        "prompts": source_name(prompts),
        "split": split,
        "exclude": source_name(exclude),
    }
    excluded = prompts_in(exclude)
    with AnswerFile(out_path, target.name_or_path, settings, resume=resume, without_loops=without_loops) as file:
        failed = FailedFile(out_path)
        seen = excluded | first_prompts(file.records)
        wanted = unanswered(prompts, seen, failed.append, split=split, limit=limit)
        wanted = list(_askable(wanted, answerer, failed))
        total = file.num_lines + len(wanted)
        with tqdm(total=total, initial=file.num_lines, unit="conv", disable=not progress) as bar:
            for first in range(0, len(wanted), _POOL * batch_size):
                pool = wanted[first : first + _POOL * batch_size]
                _answer_all(pool, answerer, file, batch_size, _mix(seed, first), bar, failed=failed)
        failed.check(file.num_lines + file.num_loops)
        return file.num_lines


def _answer_all(wanted, answerer, file, batch_size, seed, bar, failed=None) -> None:
    """Answer a pool of conversations in even batches of similar length, each written as soon as it is done."""
    wanted = sorted(wanted, key=lambda messages: sum(len(message["content"]) for message in messages))
    num_batches = -(-len(wanted) // batch_size)
    bounds = [len(wanted) * i // num_batches for i in range(num_batches + 1)] if wanted else [0]
    for start, end in pairwise(bounds):
        answered = answerer.answer(wanted[start:end], _mix(seed, start))
        records = [record for record in answered if has_text(record)]
        if failed is not None:
            for record in answered:
                if has_text(record):
                    failed.note_answer()
                else:
                    failed.append(record["messages"], ValueError("An answer has no text."))
        bar.update(file.append(records))
        bar.set_postfix_str(f"{answerer.tokens_per_second:.0f} tokens/s")


def _askable(wanted: Iterable[list[dict]], answerer: Answerer, failed: FailedFile) -> Iterator[list[dict]]:
    """Conversations that the target can be asked; the others are put aside."""
    for messages in wanted:
        try:
            answerer.check(messages)
        except ValueError as error:
            failed.append(messages, error)
        else:
            failed.note_answer()
            yield messages


def _mix(seed: int, index: int) -> int:
    """Derive a seed per round and batch, so that a resumed run goes on where an uninterrupted one would be."""
    return (seed * 1_000_003 + index * 7_919 + 1) % (2**63)


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
