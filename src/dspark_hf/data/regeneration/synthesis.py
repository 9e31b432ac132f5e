"""User prompts that the target invents, by continuing its own chat template's opening of a user turn.

An instruction-tuned model was trained on whole conversations, so what it writes there resembles its training prompts.

Source: Magpie, Xu et al. 2024 (hf.co/papers/2406.08464).
"""

import os

import torch
from transformers import LogitsProcessor

from dspark_hf.data.chat import render
from dspark_hf.data.encoding_file import has_chat_form
from dspark_hf.data.generating import end_ids, sampling_options, write_on
from dspark_hf.files import read_text

_MARK = "\u2402user-turn\u2403"
_MIN_CHARS = 12
_MIN_WORDS = 3


class _DrawTopK(LogitsProcessor):
    """Draws a token among the `top_k` likeliest and leaves only that one, for `generate(do_sample=False)` to take.

    It draws from the distribution of `generate(do_sample=True, top_k=...)`, but over `top_k` numbers a row instead of
    the vocabulary; on a CPU, drawing over the vocabulary takes longer than a small target's forward pass.
    """

    def __init__(self, top_k: int):
        self.top_k = top_k

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        top_scores, top_ids = scores.topk(min(self.top_k, scores.shape[-1]), dim=-1)
        drawn = torch.multinomial(top_scores.float().softmax(-1), num_samples=1)
        return torch.full_like(scores, -torch.inf).scatter_(-1, top_ids.gather(-1, drawn), 0.0)


def load_openings(path: str | os.PathLike) -> list[str]:
    r"""Read beginnings of user turns from a `path`, one a line; empty lines and lines that start with `#` are skipped.

    `\n` stands for a new line. An opening ends where its line does, so a word is never glued to the target's next one.

    Raises:
        `ValueError`: If there is none.
    """
    lines = read_text(path).splitlines()
    openings = [line.rstrip().replace("\\n", "\n") for line in lines if line.strip() and not line.startswith("#")]
    if not openings:
        raise ValueError(f"{path} has no opening. Write one beginning of a user turn a line.")
    return openings


class PromptSampler:
    """Samples user prompts from a target.

    Args:
        target ([`~transformers.PreTrainedModel`]): The model that invents the prompts.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer, with a chat template.
        top_k (`int`): Tokens that may be drawn at each step (temperature 1).
        max_prompt_tokens (`int`): Longest prompt; one that reaches it is kept as it is.
        openings (`Sequence[str]`): Beginnings of user turns that the target goes on from, taken in turn. Models asked
            for a whole turn mostly ask for advice; openings such as "Write a Python function that" widen that.

    Raises:
        `ValueError`: If the tokenizer has no chat template, or one in which the opening of a user turn cannot be
        found.
    """

    def __init__(self, target, tokenizer, *, top_k: int = 40, max_prompt_tokens: int = 40, openings=("",)):
        if not has_chat_form(tokenizer):
            raise ValueError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template, so the target cannot be asked to "
                "invent a user turn. Use an instruction-tuned target, or give prompts of your own."
            )
        self.target, self.tokenizer = target, tokenizer
        self.top_k, self.max_prompt_tokens = top_k, max_prompt_tokens
        rendered = render(tokenizer, [{"role": "user", "content": _MARK}])
        opening, mark, closing = rendered.partition(_MARK)
        if not mark:
            raise ValueError(
                f"The chat template of {tokenizer.name_or_path!r} does not show a user's text as it is, so the "
                "opening of a user turn cannot be found. Give prompts of your own."
            )
        if not tokenizer(opening, add_special_tokens=False)["input_ids"]:
            raise ValueError(
                f"The chat template of {tokenizer.name_or_path!r} puts nothing before a user's text, so there is no "
                "opening to continue. Give prompts of your own."
            )
        # Tokenized whole: a template's opening and a text may share a token at their border.
        self.rows = [tokenizer(opening + text, add_special_tokens=False)["input_ids"] for text in openings]
        self.openings = list(openings)
        closing_ids = tokenizer(closing, add_special_tokens=False)["input_ids"][:1]
        self.stop_ids = sorted(set(end_ids(target, tokenizer) + closing_ids))

    def sample(self, num_prompts: int, seed: int) -> list[str]:
        """Draw prompts, useless ones left out, so fewer than `num_prompts` may return. The same `seed` gives the same.

        Returns:
            `list[str]`: Distinct prompts in the order drawn.
        """
        chosen = [i % len(self.rows) for i in range(num_prompts)]
        written = write_on(
            self.target,
            [self.rows[i] for i in chosen],
            self.stop_ids,
            seed,
            **sampling_options(0.0),
            logits_processor=[_DrawTopK(self.top_k)],
            max_new_tokens=self.max_prompt_tokens,
        )
        prompts = [self._to_text(i, ids) for i, (ids, _) in zip(chosen, written, strict=True)]
        return list(dict.fromkeys(prompt for prompt in prompts if prompt is not None))

    def _to_text(self, opening: int, ids: list[int]) -> str | None:
        """The text with the opening it had; `None` for what nobody would ask."""
        if set(ids) & set(self.tokenizer.all_special_ids):
            return None
        # Decoded behind its opening: some tokenizers drop a leading space.
        before = self.rows[opening]
        written = self.tokenizer.decode(before + ids)[len(self.tokenizer.decode(before)) :]
        text = (self.openings[opening] + written).strip()
        is_useful = len(text) >= _MIN_CHARS and len(text.split()) >= _MIN_WORDS and "\ufffd" not in text
        return text if is_useful else None
