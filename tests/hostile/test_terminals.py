"""What others wrote reaches the terminal as text: no escape sequence of theirs, no markup in names."""

import io
import re
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from dspark_hf.cli import cache, train
from dspark_hf.cli.evaluation.tables import progress_bar, show_tables
from dspark_hf.cli.main import app
from dspark_hf.cli.stream import DRAFTED_STYLE, RoundStreamer
from dspark_hf.cli.terminal import plain, visible, visible_name
from dspark_hf.cli.upload import show_files
from dspark_hf.evaluation.reporting.tables import Table
from dspark_hf.trainers.recipes.recipe import Recipe

SEQUENCES = [
    "\x1b]52;c;cm0gLXJm\x07", "\x1b]52;c;cm0gLXJm\x1b\\", "\x1b[2J\x1b[H", "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
    "\x1b]0;title\x07", "\x1bc", "\x9b2J", "\x90q\x9c", "\x1bP+q544e\x1b\\", "a\rb", "a\x08b", "\x7f", "\x00",
    "\x0e\x0f", "\x85", "\u202etxt.exe", "\u2066x\u2069", "\x1b[5m[bold]x[/bold]",
]  # fmt: skip
NAMES = ["runs[lora]/a", "[red]x[/red]", "math [/b]", "[/]", "[link=http://evil]x[/link]", "[@click=app.quit]x[/]"]
OWN = re.compile(r"\x1b\[[0-9;]*m")  # colours and weight, which are ours


def printed(*things, **options):
    file = io.StringIO()
    Console(file=file, force_terminal=True, width=400, **options).print(*things)
    return OWN.sub("", file.getvalue())


def controls(text):
    return [char for char in text if visible(char) != char]


@pytest.mark.parametrize("text", SEQUENCES, ids=ascii)
def test_streams_send_no_controls(tiny_tokenizer, text):
    file = io.StringIO()
    streamer = RoundStreamer(tiny_tokenizer, Console(file=file, force_terminal=True, width=400))
    ids = torch.tensor(tiny_tokenizer(f"before {text}\n\tafter", add_special_tokens=False)["input_ids"])
    streamer.put(torch.tensor([[1]]))
    for number in range(0, len(ids), 3):
        streamer.put_speculative(ids[number : number + 3], 2)
    streamer.end()
    out = OWN.sub("", file.getvalue())
    assert controls(out) == [] and visible(text) in out and "\n\tafter" in out.replace("        ", "\t")


def test_colours_stay(tiny_tokenizer):
    file = io.StringIO()
    streamer = RoundStreamer(tiny_tokenizer, Console(file=file, force_terminal=True))
    streamer.put(torch.tensor([[1]]))
    streamer.put_speculative(torch.tensor(tiny_tokenizer("ab", add_special_tokens=False)["input_ids"]), 1)
    streamer.end()
    assert file.getvalue().startswith("\x1b[1;32ma\x1b[0mb") and DRAFTED_STYLE == "bold green"


def test_ordinary_text_is_as_it_was():
    for text in ("a\n\tb", "\u00e9\u4e16\U0001f600\u200d\U0001f680", "\u05d0\u200f", ""):
        assert visible(text) == text
    assert visible("\x1b[2J\x9b\x7f\u202e") == "\u241b[2J<U+009B>\u2421<U+202E>"


@pytest.mark.parametrize("name", [*NAMES, *SEQUENCES], ids=ascii)
def test_names_are_text_in_every_table(name):
    recipe = Recipe(target=name, paper=name, published={name: 3.0})
    built = SimpleNamespace(
        folder=name, num_tokens=1, bytes_per_token=1.0, manifest=SimpleNamespace(dtype="bf16"), __len__=lambda: 1
    )
    summary = cache._summary(type("Built", (), {**vars(built), "__len__": lambda self: 1})())
    file = io.StringIO()
    tables = [Table(name, ["way", name], [[name, "1.00"]], [name])]
    show_tables(Console(file=file, force_terminal=True, width=400), tables, [name])
    shown = [printed(thing) for thing in (train._result_table({"eval_tau": 1.0}, recipe), plain(summary))]
    for out in (*shown, OWN.sub("", file.getvalue())):
        assert controls(out) == [] and visible(name).replace("\n", " ") in out


@pytest.mark.parametrize("name", [*NAMES, *SEQUENCES], ids=ascii)
def test_names_are_text_beside_a_bar(name):
    file = io.StringIO()
    with progress_bar(Console(file=file, width=400)) as bar:
        bar.update(bar.add_task("batches", total=2, note=""), completed=1, note=name)
    assert controls(file.getvalue()) == [] and visible_name(name) in file.getvalue()


@pytest.mark.parametrize("name", NAMES + SEQUENCES[:4], ids=ascii)
def test_errors_are_one_line_of_text(monkeypatch, tmp_path, name):
    def fail(*_):
        raise ValueError(f"There is no {name}\nhere.")

    monkeypatch.setattr("dspark_hf.data.cache.TargetCache", fail)
    result = CliRunner().invoke(app, ["cache", "--out", str(tmp_path), "--verify"], color=True)
    assert result.exit_code == 2 and controls(OWN.sub("", result.output)) == []
    assert f"error: There is no {' '.join(visible(name).split())} here." in result.output


@pytest.mark.parametrize("name", SEQUENCES[:4], ids=ascii)
def test_an_upload_shows_names_as_text(capsys, name):
    show_files([name, "config.json"], [name], err=False)
    shown = capsys.readouterr()
    assert controls(shown.out + shown.err) == [] and shown.out.endswith("config.json\n")


def test_a_name_forges_no_line(capsys):
    show_files(["a\nmodel.safetensors", "config.json"], ["b\tc"], err=False)
    shown = capsys.readouterr()
    assert shown.out == "a\u240amodel.safetensors\nconfig.json\n" and "b\u2409c" in shown.err
