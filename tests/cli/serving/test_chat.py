"""`dspark chat`: turns from standard input, and what is shown on a terminal."""

import io
import re

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from dspark_hf.cli.main import app
from dspark_hf.cli.serving.live import answer_streamer

OWN = re.compile(r"\x1b\[[0-9;]*m")


def talk(models, text, *options):
    arguments = ["chat", *models, "--max-new-tokens", "6", "--dtype", "float32", *options]
    return CliRunner().invoke(app, arguments, input=text)


def test_several_turns(models):
    outcome = talk(models, "Hello\n\nAnd now?\n/new\nHello\n")
    assert outcome.exit_code == 0, outcome.output
    figures = re.findall(r"6 tokens, \d+\.\d tokens/s, tau \d\.\d\d, of all answers (\d\.\d\d)", outcome.stdout)
    assert len(figures) == 3
    first, _, again = re.split(r"6 tokens.*\n", outcome.stdout)[:3]
    assert first.removeprefix("> ") == again.removeprefix("> ").removeprefix("> ")


def test_leaving(models):
    assert talk(models, "/exit\nHello\n").stdout.count("tokens/s") == 0


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=True, width=60, height=20)


def test_tau_stands_below_the_line_at_work(tiny_tokenizer, console):
    ids = torch.tensor(tiny_tokenizer("one\ntwo\x1b[2J three")["input_ids"])
    with answer_streamer(tiny_tokenizer, console, None) as streamer:
        streamer.put(torch.tensor([[1, 2]]))
        streamer.put(ids[:1])
        for start in range(1, len(ids), 3):
            streamer.put_speculative(ids[start : start + 3], 2)
        streamer.end()
    out = console.file.getvalue()
    assert "tau 3.00" in out and "\x1b[2J" not in out
    text = OWN.sub("", re.sub(r"\x1b\[\??\d*[A-KlhG]", "", out))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert lines[-1] == "two\N{SYMBOL FOR ESCAPE}[2J three" and "one" in lines


def test_a_pipe_gets_the_text_alone(tiny_tokenizer):
    console = Console(file=io.StringIO())
    with answer_streamer(tiny_tokenizer, console, None) as streamer:
        streamer.put(torch.tensor([[1, 2]]))
        streamer.put_speculative(torch.tensor(tiny_tokenizer("text")["input_ids"]), 2)
        streamer.end()
    assert console.file.getvalue() == "text\n"
