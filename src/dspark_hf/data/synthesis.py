"""User prompts that the target invents, by continuing its own chat template's opening of a user turn.

An instruction-tuned model was trained on whole conversations, so what it writes there resembles its training prompts.

Source: Magpie, Xu et al. 2024 (hf.co/papers/2406.08464).
"""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

_MARK = "\u2402user-turn\u2403"
_MIN_CHARS = 12
_MIN_WORDS = 3


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Stack token lists of different lengths, padded on the left as `generate()` wants them.

    Returns:
        `dict`: `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(batch, seq)`).
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def end_ids(target, tokenizer) -> list[int]:
    """Return the ids that end the target's answer: those of its generation config, else the tokenizer's."""
    ids = target.generation_config.eos_token_id
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        raise ValueError(
            "Neither the target's generation config nor its tokenizer names an end-of-sequence token. Set "
            "`target.generation_config.eos_token_id`."
        )
    return list(ids) if isinstance(ids, (list, tuple)) else [ids]


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


class PromptSampler:
    """Samples user prompts from a target.

    Args:
        target ([`~transformers.PreTrainedModel`]): The model that invents the prompts.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer, with a chat template.
        top_k (`int`): Tokens that may be drawn at each step (temperature 1).
        max_prompt_tokens (`int`): Longest prompt; one that reaches it is kept as it is.
    """

    def __init__(self, target, tokenizer, *, top_k: int = 40, max_prompt_tokens: int = 40):
        if tokenizer.chat_template is None:
            raise ValueError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template, so the target cannot be asked to "
                "invent a user turn. Use an instruction-tuned target, or give prompts of your own."
            )
        self.target, self.tokenizer = target, tokenizer
        self.top_k, self.max_prompt_tokens = top_k, max_prompt_tokens
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)
        opening, mark, closing = rendered.partition(_MARK)
        if not mark:
            raise ValueError(
                f"The chat template of {tokenizer.name_or_path!r} does not show a user's text as it is, so the "
                "opening of a user turn cannot be found. Give prompts of your own."
            )
        self.opening_ids = tokenizer(opening, add_special_tokens=False)["input_ids"]
        if not self.opening_ids:
            raise ValueError(
                f"The chat template of {tokenizer.name_or_path!r} puts nothing before a user's text, so there is no "
                "opening to continue. Give prompts of your own."
            )
        closing_ids = tokenizer(closing, add_special_tokens=False)["input_ids"][:1]
        self.stop_ids = sorted(set(end_ids(target, tokenizer) + closing_ids))

    @torch.inference_mode()
    def sample(self, num_prompts: int, seed: int) -> list[str]:
        """Draw prompts, useless ones left out, so fewer than `num_prompts` may return. The same seed gives the same.

        Returns:
            `list[str]`: Distinct prompts in the order drawn.
        """
        inputs = left_pad([self.opening_ids] * num_prompts, self.stop_ids[0])
        inputs = {key: value.to(self.target.device) for key, value in inputs.items()}
        devices = [self.target.device] if self.target.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            out = self.target.generate(
                **inputs,
                do_sample=False,
                logits_processor=[_DrawTopK(self.top_k)],
                eos_token_id=self.stop_ids,
                pad_token_id=self.stop_ids[0],
                max_new_tokens=self.max_prompt_tokens,
            )
        prompts = [self._to_text(row) for row in out[:, len(self.opening_ids) :].tolist()]
        return list(dict.fromkeys(prompt for prompt in prompts if prompt is not None))

    def _to_text(self, ids: list[int]) -> str | None:
        """Decode up to the end of the turn; `None` for what nobody would ask."""
        ends = [i for i, token in enumerate(ids) if token in self.stop_ids]
        ids = ids[: ends[0]] if ends else ids
        if set(ids) & set(self.tokenizer.all_special_ids):
            return None
        text = self.tokenizer.decode(ids).strip()
        is_useful = len(text) >= _MIN_CHARS and len(text.split()) >= _MIN_WORDS and "\ufffd" not in text
        return text if is_useful else None
