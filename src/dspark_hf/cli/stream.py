"""Text on the console while it is made, accepted draft tokens in colour."""

from typing import Any

from rich.console import Console
from transformers.generation.streamers import BaseStreamer

from dspark_hf.cli.terminal import plain

DRAFTED_STYLE = "bold green"
# What a decoder shows for the bytes of a character that is not complete yet.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def figures(num_tokens: int, tokens_per_second: float, tau: float) -> str:
    """What is told of an answer below it.

    Args:
        num_tokens (`int`): Its tokens.
        tokens_per_second (`float`): How fast they came.
        tau (`float`): Tokens of a round.
    """
    return f"{num_tokens} tokens, {tokens_per_second:.1f} tokens/s, tau {tau:.2f}"


class RoundStreamer(BaseStreamer):
    """Prints one sequence as it is generated.

    Plain `generate()` calls `put` with a token at a time. Speculative decoding calls `put_speculative` once a round,
    so that the tokens which the drafter proposed can be told from those which the target made.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The target's.
        console (`rich.console.Console`): Where to print.
    """

    def __init__(self, tokenizer: Any, console: Console) -> None:
        self._tokenizer = tokenizer
        self._console = console
        self._start()

    def _start(self) -> None:
        self._ids: list[int] = []
        # Text up to `_shown` is printed; decoding restarts at `_context`, because a token's text may depend on the
        # one before it.
        self._context = 0
        self._shown = 0
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Print tokens that the target made; the first call brings the prompt, which is passed over.

        Args:
            value (`torch.Tensor` of shape `(num,)` or `(1, num)`): Token ids.
        """
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._write(value.reshape(-1).tolist(), style=None)

    def put_speculative(self, ids: Any, accepted_len: int) -> None:
        """Print the tokens of one round.

        Args:
            ids (`torch.Tensor` of shape `(num,)` or `(1, num)`): The round's token ids.
            accepted_len (`int`): How many of them, from the left, were drafted.
        """
        flat = ids.reshape(-1).tolist()
        self._write(flat[:accepted_len], style=DRAFTED_STYLE)
        self._write(flat[accepted_len:], style=None)

    def end(self) -> None:
        """Print what was held back and end the line; the next sequence may follow."""
        self._print(self._pending(), style=None)
        self._console.print()
        self._start()

    def _write(self, ids: list[int], style: str | None) -> None:
        if not ids:
            return
        self._ids += ids
        text = self._pending()
        if text.endswith(_INCOMPLETE):
            return
        self._print(text, style)
        self._context, self._shown = self._shown, len(self._ids)

    def _pending(self) -> str:
        before = self._decode(self._ids[self._context : self._shown])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _print(self, text: str, style: str | None) -> None:
        self._console.print(plain(text, style or ""), end="", soft_wrap=True)
