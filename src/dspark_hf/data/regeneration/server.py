"""Training text from a target behind an OpenAI-compatible server (vLLM, SGLang, any other)."""

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm

from dspark_hf.data.conversations import check_messages
from dspark_hf.data.regeneration.answer_file import AnswerFile, FailedFile, is_secret
from dspark_hf.data.regeneration.bounded_client import bounded_client
from dspark_hf.data.regeneration.questions import first_prompts, prompts_in, source_name, unanswered

# No token is longer; and what a reply holds besides its text.
_TOKEN_BYTES, _REPLY_BYTES = 512, 2**20


class ServerAnswerer:
    """Answers conversations through a server's `/v1/chat/completions`, in one run.

    Args:
        base_url (`str`): Address of the server, such as `http://localhost:8000/v1`.
        model (`str`): Name under which the server has the target.
        max_new_tokens (`int`, *optional*, defaults to 2048): Longest answer.
        temperature (`float`, *optional*, defaults to 0.0): 0 for greedy answers.
        thinking (`bool`, *optional*): Passed to the chat template as `enable_thinking`; the template's own choice, if
            not given.
        reasoning_effort (`str`, *optional*): Passed on in each request.
        api_key (`str`, *optional*): Key of the server.
        max_retries (`int`, *optional*, defaults to 5): Attempts after the first, with growing pauses, where the server
            is busy or fails.
        timeout (`float`, *optional*, defaults to 600.0): Seconds for an answer, all attempts and pauses included.

    Raises:
        `ValueError`: If a setting is out of range.
        `ImportError`: If the `openai` package is not installed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        max_new_tokens: int = 2048,
        temperature: float = 0.0,
        thinking: bool | None = None,
        reasoning_effort: str | None = None,
        api_key: str | None = None,
        max_retries: int = 5,
        timeout: float = 600.0,
    ):
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"Expected the server's address, like http://localhost:8000/v1, got {base_url!r}.")
        _check_positive(max_new_tokens=max_new_tokens, timeout=timeout)
        if max_retries < 0:
            raise ValueError(f"max_retries must not be negative, got {max_retries}.")
        if temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or above, got {temperature}.")
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise ImportError("Asking a server needs the openai package: pip install dspark_hf[server].") from error
        # The client insists on a key; servers that want none do not look at it.
        self.client = AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "EMPTY",
            timeout=timeout,
            max_retries=max_retries,
            http_client=bounded_client(_REPLY_BYTES + max_new_tokens * _TOKEN_BYTES),
        )
        self.api_key, self.timeout, self.max_new_tokens = api_key, timeout, max_new_tokens
        self.options: dict[str, Any] = {"model": model, "max_tokens": max_new_tokens, "temperature": temperature}
        if thinking is not None:
            self.options["extra_body"] = {"chat_template_kwargs": {"enable_thinking": thinking}}
        effort = {} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}
        self.options |= effort
        self.noted = ({} if thinking is None else {"thinking": thinking}) | effort
        # What answers depend on, for their provenance.
        self.settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "thinking": thinking, **effort}
        self.num_tokens = 0

    async def answer(self, messages: Sequence[dict], seed: int) -> dict[str, Any]:
        """Answer every user turn, in order.

        Args:
            messages (`list[dict]`): System and user messages.
            seed (`int`): Seed of a sampled answer.

        Returns:
            `dict`: `{"messages", "complete"}`; it ends where an answer was cut off, with `complete` false. Thoughts
            that the server took out of an answer stand beside it as `reasoning_content`, as chat templates expect.

        Raises:
            `ValueError`: If an answer has no text, is far longer than asked for, holds the key, or does not come in
                time, or the reply is none.
            `openai.OpenAIError`: If the server does not answer, all attempts included.
        """
        done: list[dict] = []
        for message in messages:
            done.append(dict(message))
            if message["role"] == "user":
                choice = await self._ask(done, seed)
                answer = {"role": "assistant", "content": choice.message.content or ""}
                check_messages([answer])
                thoughts = _extra(choice.message, "reasoning_content") or _extra(choice.message, "reasoning")
                if thoughts:
                    check_messages([{"role": "assistant", "content": thoughts}])
                    answer["reasoning_content"] = thoughts
                if not answer["content"].strip():
                    # Not cut here, nor below: reasons are once the key in them, which may be cut in two, is masked.
                    raise ValueError(
                        f"The answer has no text (finish_reason {choice.finish_reason!r}); where that is 'length', "
                        "raise max_new_tokens."
                    )
                self._check_content(answer)
                done.append(answer)
                if choice.finish_reason in ("length", "content_filter"):
                    return {"messages": done, "complete": False, **self.noted}
        return {"messages": done, "complete": True, **self.noted}

    def _check_content(self, answer: dict[str, str]) -> None:
        """Raise `ValueError` for an answer that must not become training text."""
        num_chars = len(answer["content"]) + len(answer.get("reasoning_content", ""))
        if num_chars > self.max_new_tokens * _TOKEN_BYTES:
            raise ValueError(
                f"The answer has {num_chars} characters, far more than max_new_tokens={self.max_new_tokens} can be."
            )
        if is_secret(self.api_key) and any(self.api_key in text for text in answer.values()):
            raise ValueError("The answer repeats the server's key.")

    async def _ask(self, messages: list[dict], seed: int) -> Any:
        try:
            async with asyncio.timeout(self.timeout):
                output = await self.client.chat.completions.create(
                    messages=messages, seed=seed % 2**31, **self.options
                )
        except TimeoutError:
            raise ValueError(f"No answer came within timeout={self.timeout} seconds.") from None
        try:
            choice, _ = output.choices[0], output.choices[0].message.content
        except (AttributeError, LookupError, TypeError):
            # An error that comes with status 200 is a field that the protocol does not know.
            content = getattr(output, "model_extra", None) or output
            raise ValueError(f"The server's reply is no chat completion: {content!r}") from None
        num_tokens = getattr(output.usage, "completion_tokens", None)
        # The client passes on whatever type and value the server gives.
        is_plausible = isinstance(num_tokens, int) and 0 <= num_tokens <= self.max_new_tokens
        self.num_tokens += num_tokens if is_plausible else 0
        return choice


def regenerate_with_server(
    answerer: ServerAnswerer,
    prompts: str | os.PathLike | Iterable,
    out_path: str | os.PathLike,
    *,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    concurrency: int = 32,
    exclude: str | os.PathLike | None = None,
    without_loops: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> tuple[int, int]:
    """Let a target behind a server answer prompts; answers that come with the prompts are replaced by its own.

    A conversation is written as soon as it is done. A failed one goes to `<out_path>.failed.jsonl` with its reason,
    and is tried again by a resumed run.

    Args:
        answerer ([`ServerAnswerer`]): Asks the server.
        prompts (`str`, `os.PathLike` or iterable): As of [`~data.prompts.iterate_prompts`], or messages lists. Of
            conversations with the same prompt, the first is taken.
        split, limit: As of [`~data.regeneration.regenerate`].
        out_path (`str` or `os.PathLike`): As of [`~data.regeneration.synthesize`].
        seed (`int`, *optional*, defaults to 0): Seed of sampled answers.
        concurrency (`int`, *optional*, defaults to 32): Conversations under way at once.
        exclude, without_loops, resume, progress: As of [`~data.regeneration.synthesize`].

    Returns:
        `tuple[int, int]`: Conversations in the file, and conversations that failed.

    Raises:
        `ValueError`: If a setting is out of range, the file exists and `resume` is off or was made otherwise, not one
            conversation was answered, or a hundred in a row were not.
    """
    _check_positive(concurrency=concurrency, limit=limit)
    settings = {
        "kind": "server",
        "seed": seed,
        **answerer.settings,
        "prompts": source_name(prompts),
        "split": split,
        "exclude": source_name(exclude),
    }
    excluded = prompts_in(exclude)
    model = answerer.options["model"]
    with AnswerFile(out_path, model, settings, resume=resume, without_loops=without_loops) as file:
        failed = FailedFile(out_path, secret=answerer.api_key)
        seen = excluded | first_prompts(file.records)
        wanted = unanswered(prompts, seen, failed.append, split=split, limit=limit)
        with tqdm(initial=file.num_lines, unit="conv", disable=not progress) as bar:
            asyncio.run(_answer_all(answerer, wanted, file, failed, bar, seed, concurrency))
        failed.check(file.num_lines + file.num_loops)
        return file.num_lines, failed.num_lines


async def _answer_all(
    answerer: ServerAnswerer,
    wanted: Iterator[list[dict]],
    file: AnswerFile,
    failed: FailedFile,
    bar: tqdm,
    seed: int,
    concurrency: int,
) -> None:
    async def work() -> None:
        # Workers share one iterator, so a stream of prompts is read no faster than it is answered.
        for messages in wanted:
            try:
                answered = await answerer.answer(messages, seed)
            # A server may reply with anything; what the client or we make of it is no reason to stop.
            except Exception as error:
                failed.append(messages, error)
            else:
                file.append([answered])
                failed.note_answer()
                bar.update()
            tokens_per_second = answerer.num_tokens / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{tokens_per_second:.0f} tokens/s, {failed.num_lines} failed")

    async with answerer.client:
        await asyncio.gather(*(work() for _ in range(concurrency)))


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}.")


def _extra(message: Any, name: str) -> Any:
    """A field that servers add to the protocol."""
    return (message.model_extra or {}).get(name)
