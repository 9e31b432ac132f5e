"""A target's answers to conversations, made in batches."""

import time
from collections.abc import Sequence

from dspark_hf.data.chat import prompt_ids
from dspark_hf.data.encoding_file import encoding_file, has_chat_form
from dspark_hf.data.generating import end_ids, sampling_options, write_on
from dspark_hf.data.special_tokens import spelled_token
from dspark_hf.data.template_options import check_template_options
from dspark_hf.messages import shown


class Answerer:
    """Answers conversations in batches.

    Args:
        target ([`~transformers.PreTrainedModel`]): The model that answers.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        max_new_tokens (`int`): Longest answer.
        temperature (`float`): 0 for greedy answers.
        thinking (`bool`, *optional*): `enable_thinking` of the chat template.
        reasoning_effort (`str`, *optional*): `reasoning_effort` of the chat template or the encoding file.
        keep_special_tokens (`bool`): Whether prompts may spell special tokens of the tokenizer.

    Raises:
        `ValueError`: If the temperature is negative, or the chat template does not know an option that is given.
    """

    def __init__(
        self,
        target,
        tokenizer,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        thinking: bool | None = None,
        reasoning_effort: str | None = None,
        keep_special_tokens: bool = False,
    ):
        if temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or above, got {temperature}.")
        self.target, self.tokenizer, self.max_new_tokens = target, tokenizer, max_new_tokens
        self.keep_special_tokens = keep_special_tokens
        check_template_options(tokenizer, thinking, reasoning_effort)
        given = {"thinking": thinking, "reasoning_effort": reasoning_effort}
        # How prompts are rendered; records say it, so that training renders them alike.
        self.form = {name: value for name, value in given.items() if value is not None}
        self.end_ids = end_ids(target, tokenizer)
        self.sampling = sampling_options(temperature)
        # What answers depend on, for their provenance.
        self.settings = {
            "dtype": str(target.dtype).removeprefix("torch."),
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "thinking": thinking,
            **({} if reasoning_effort is None else {"reasoning_effort": reasoning_effort}),
        }
        self.num_tokens, self.seconds = 0, 0.0

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens written per second of generation so far."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    def answer(self, conversations: Sequence[Sequence[dict]], seed: int) -> list[dict]:
        """Answer every user turn of each conversation, in order. An answer may have no text ([`has_text`]).

        Args:
            conversations (`list[list[dict]]`): System and user messages; an answer is put after each user message.
            seed (`int`): Seed of sampled answers.

        Returns:
            `list[dict]`: `{"messages", "complete"}`, and `thinking` and `reasoning_effort` if chosen, per
            conversation. It ends where an answer was cut off by `max_new_tokens`, with `complete` false. Of a target
            without chat template it has the `answer_ids` too.
        """
        queues = [list(messages) for messages in conversations]
        done: list[list[dict]] = [[] for _ in queues]
        complete = [True] * len(queues)
        raw: list[dict] = [{} for _ in queues]
        while rows := [i for i, queue in enumerate(queues) if queue and complete[i]]:
            for i in rows:
                while queues[i] and (not done[i] or done[i][-1]["role"] != "user"):
                    done[i].append(queues[i].pop(0))
            rows = [i for i in rows if done[i][-1]["role"] == "user"]
            for i, (text, ids, end) in zip(rows, self._answer_once([done[i] for i in rows], seed), strict=True):
                complete[i] = end is not None
                done[i].append(self._message(done[i], text, ids, end))
                if not has_chat_form(self.tokenizer):
                    # Raw text need not become the same ids again.
                    raw[i] = {"answer_ids": ids + [end] * complete[i]}
        return [
            {"messages": messages, "complete": ended, **self.form, **ids}
            for messages, ended, ids in zip(done, complete, raw, strict=True)
        ]

    def check(self, messages: Sequence[dict]) -> None:
        """Check that the target can be asked to answer these `messages`.

        Raises:
            `ValueError`: If the chat template refuses, the prompt is too long, or it spells special tokens, which
            would be
                real ones.
        """
        if not self.keep_special_tokens and (token := spelled_token(self.tokenizer, messages)) is not None:
            raise ValueError(
                f"The text spells {shown(token)}, a special token of the tokenizer, and could forge turns. Take it "
                "out, or set keep_special_tokens."
            )
        first = next(i for i, message in enumerate(messages) if message["role"] == "user")
        num_tokens = len(prompt_ids(self.tokenizer, messages[: first + 1], **self.form))
        longest = getattr(self.target.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and num_tokens + self.max_new_tokens > longest:
            raise ValueError(
                f"The prompt has {num_tokens} tokens, and with {self.max_new_tokens} of an answer the target would "
                f"go beyond the {longest} that it can attend to. Shorten it, or lower max_new_tokens."
            )

    def _message(self, messages: list[dict], text: str, ids: list[int], end: int | None) -> dict:
        """What was written, its thoughts apart where an encoding file tells them and puts them back as they were."""
        plain = {"role": "assistant", "content": text}
        file = encoding_file(self.tokenizer)
        if file is None or end is None:
            return plain
        written = self.tokenizer.decode([*ids, end])
        parsed = file.parse(written, self.form.get("thinking"))
        if parsed is None:
            return plain
        opening = file.render(messages, **self.form)
        return parsed if file.render([*messages, parsed], **self.form) == opening + written else plain

    def _answer_once(self, conversations: list[list[dict]], seed: int) -> list[tuple[str, list[int], int | None]]:
        if not conversations:
            return []
        start = time.perf_counter()
        prompts = [prompt_ids(self.tokenizer, messages, **self.form) for messages in conversations]
        answers = []
        for ids, end in write_on(
            self.target, prompts, self.end_ids, seed, **self.sampling, max_new_tokens=self.max_new_tokens
        ):
            self.num_tokens += len(ids) + (end is not None)
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            # An answer cut inside a character would decode to a replacement sign that the target never wrote.
            answers.append((text.rstrip("\ufffd") if end is None else text, ids, end))
        self.seconds += time.perf_counter() - start
        return answers


def has_text(record: dict) -> bool:
    """Whether every answer of a `record` that [`Answerer.answer`] made has text."""
    return all(message["content"].strip() for message in record["messages"])
