"""Streamed text is the decoded text, with accepted tokens in colour."""

import io

import pytest
import torch
from rich.console import Console
from rich.text import Text

from dspark_hf.cli.stream import RoundStreamer

TEXT = "Grüße, 世界! [bold]not markup[/] 🎈\nnext line"


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=20)


def ids_of(tokenizer, text: str) -> torch.Tensor:
    return torch.tensor(tokenizer(text)["input_ids"])


def plain_text(console: Console) -> str:
    return Text.from_ansi(console.file.getvalue()).plain.removesuffix("\n")


@pytest.mark.parametrize("step", [1, 3, 7])
def test_pieces_make_the_text(tiny_tokenizer, console, step):
    streamer = RoundStreamer(tiny_tokenizer, console)
    streamer.put(ids_of(tiny_tokenizer, "the prompt")[None])
    ids = ids_of(tiny_tokenizer, TEXT)
    for start in range(0, len(ids), step):
        piece = ids[start : start + step]
        streamer.put_speculative(piece, accepted_len=len(piece) - 1)
    streamer.end()
    assert plain_text(console) == TEXT


def test_single_tokens_make_the_text(tiny_tokenizer, console):
    streamer = RoundStreamer(tiny_tokenizer, console)
    for answer in ("first", "second"):
        streamer.put(ids_of(tiny_tokenizer, "prompt")[None])
        for token in ids_of(tiny_tokenizer, answer):
            streamer.put(token[None])
        streamer.end()
    assert plain_text(console) == "first\nsecond"


def test_only_accepted_tokens_are_coloured(tiny_tokenizer, console):
    streamer = RoundStreamer(tiny_tokenizer, console)
    streamer.put(ids_of(tiny_tokenizer, "prompt")[None])
    streamer.put_speculative(ids_of(tiny_tokenizer, "abC"), accepted_len=2)
    streamer.put_speculative(ids_of(tiny_tokenizer, "D"), accepted_len=0)
    streamer.end()
    assert console.file.getvalue() == "\x1b[1;32mab\x1b[0mCD\n"


def test_special_tokens_are_not_shown(tiny_tokenizer, console):
    streamer = RoundStreamer(tiny_tokenizer, console)
    streamer.put(ids_of(tiny_tokenizer, "prompt")[None])
    streamer.put_speculative(
        torch.tensor([*ids_of(tiny_tokenizer, "end"), tiny_tokenizer.eos_token_id]), accepted_len=1
    )
    streamer.end()
    assert plain_text(console) == "end"
