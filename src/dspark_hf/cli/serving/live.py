"""An answer on the terminal with a line below it that tells tau while it is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dspark_hf.cli.stream import RoundStreamer
from dspark_hf.cli.terminal import plain


@contextmanager
def answer_streamer(tokenizer: Any, console: Console, drafter: Any) -> Iterator[RoundStreamer]:
    """What `generate()` is given to print one answer; with tau below it on a terminal, else the text alone.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The target's.
        console (`rich.console.Console`): Where to print.
        drafter ([`DSparkModel`]): The drafter.
    """
    if not console.is_terminal:
        yield RoundStreamer(tokenizer, console)
        return
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="visible") as live:
        streamer = LiveStreamer(tokenizer, console, live)
        try:
            yield streamer
        finally:
            streamer.leave()


class LiveStreamer(RoundStreamer):
    """A [`RoundStreamer`] that knows how many tokens a round brought, and shows it below the line at work.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The target's.
        console (`rich.console.Console`): Where to print.
        live (`rich.live.Live`): The lines that change; everything else goes above them.
    """

    def __init__(self, tokenizer: Any, console: Console, live: Live) -> None:
        super().__init__(tokenizer, console)
        self._live, self._line = live, Text()
        self._num_rounds = self._num_tokens = 0

    def put_speculative(self, ids: Any, accepted_len: int) -> None:
        """As of [`RoundStreamer`]; counts the round."""
        self._num_rounds += 1
        self._num_tokens += ids.numel()
        super().put_speculative(ids, accepted_len)
        tau = f"tau {self._num_tokens / self._num_rounds:.2f}"
        self._live.update(Group(self._line, Text(tau, "dim")), refresh=True)

    def end(self) -> None:
        """Print what was held back."""
        self._print(self._pending(), style=None)
        self._start()

    def leave(self) -> None:
        """Leave the last line where it stands."""
        self._live.update(Text(), refresh=True)
        self._console.print(self._line, soft_wrap=True)

    def _print(self, text: str, style: str | None) -> None:
        first, *rest = text.split("\n")
        self._line.append_text(plain(first, style or ""))
        for line in rest:
            # What is whole goes above the lines that change.
            self._console.print(self._line, soft_wrap=True)
            self._line = plain(line, style or "")
