"""Folders of evaluations that others wrote or changed: a page and figures of them, or an error that names the file."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dspark_hf import AutoDrafter
from dspark_hf.evaluation import (
    EvaluationSettings,
    LoadedTask,
    Question,
    RunFolder,
    drafter_way,
    evaluate,
    plain_way,
)
from dspark_hf.evaluation.reporting.page import write_report
from dspark_hf.evaluation.running.journal import _checksum
from dspark_hf.publishing import add_evaluation
from dspark_hf.publishing.evaluations import evaluation_name, read_evaluation
from dspark_hf.trainers.resuming import check_same_run

ODD = [None, -1, 1e308, "x", [], {}, [None], {"a": 1}]


@pytest.fixture(scope="module")
def run(tiny_target_dir, tiny_drafter_dir, tiny_tokenizer, tmp_path_factory):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir, dtype=torch.float32).eval()
    drafter = AutoDrafter.from_pretrained(tiny_drafter_dir).eval().bind(target)
    questions = [Question(0, [[{"role": "user", "content": "Count."}]])]
    out = tmp_path_factory.mktemp("runs") / "first"
    ways, settings = [plain_way(), drafter_way("tiny", drafter)], EvaluationSettings(max_new_tokens=6)
    evaluate(target, tiny_tokenizer, [LoadedTask("chat", questions, 1)], ways, settings, out)
    return out


@pytest.fixture
def fresh(run, tmp_path, monkeypatch):
    """`fresh(lines=None, **files)`: a copy of the run with other records, checksums right, or other files."""
    # Pictures take a second each, and show what the tables do.
    monkeypatch.setattr("dspark_hf.evaluation.reporting.page.all_charts", lambda summaries: {})

    def make(lines=None, **files):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run, folder)
        if lines is not None:
            # Figures are made of the records then.
            (folder / "summary.json").unlink()
            lines = [{name: value for name, value in line.items() if name != "crc32"} for line in lines]
            texts = [json.dumps({**line, "crc32": _checksum(line)}) for line in lines]
            (folder / "records-0.jsonl").write_text("".join(f"{text}\n" for text in texts))
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    return make


def places(value, prefix=()):
    """Every field of nested records, of lists the first."""
    if isinstance(value, dict):
        for name in value:
            yield (*prefix, name)
            yield from places(value[name], (*prefix, name))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield from places(value[0], (*prefix, 0))


def changed(value, place, new):
    value = copy.deepcopy(value)
    inner = value
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = new
    return value


def outcome(do, folder):
    try:
        do()
    except ValueError as error:
        assert type(error) is ValueError and str(folder) in str(error), error
        return "refused"
    return "harmless"


def test_every_field_of_records_and_summaries(run, fresh):
    lines = [json.loads(line) for line in (run / "records-0.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    found = []
    for number, line in enumerate(lines[:2]):
        for place in places(line):
            for new in ODD[:: 1 if len(place) < 3 else 3]:
                others = [*lines[:number], changed(line, place, new), *lines[number + 1 :]]
                folder = fresh(others)
                found.append(outcome(lambda folder=folder: write_report([folder], folder / "report.html"), folder))
    for index, place in enumerate(places(summary)):
        new = ODD[index % len(ODD)]
        folder = fresh(summary=changed(summary, place, new))
        found.append(outcome(lambda folder=folder: write_report([folder], folder / "report.html"), folder))
        found.append(outcome(lambda folder=folder: read_evaluation(folder), folder))
    print(f"\nevaluations: {found.count('refused')} refused, {found.count('harmless')} harmless")
    assert found.count("refused") > 100 and found.count("harmless") > 20


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([{}], "line 1: it must hold made_with"),
        ([{"made_with": {}}, {"value": 1}], "line 2: it must hold part and value"),
        ([{"made_with": {}}, {"part": [1], "value": 1}], "line 2: it must hold part and value"),
        ([{"made_with": {}}, {"part": "x", "value": "y"}], "holds no whole evaluation"),
        ([{"made_with": [1]}], "line 1: it must hold made_with"),
        ([{"made_with": {}}, {"part": "x", "value": {}}], "holds no whole evaluation"),
    ],
    ids=str,
)
def test_records_that_are_none(fresh, lines, told):
    folder = fresh(lines)
    with pytest.raises(ValueError, match=f"{folder}.*{told}"):
        write_report([folder], folder / "report.html")


def test_other_files(fresh):
    folder = fresh()
    shutil.copy(folder / "records-0.jsonl", folder / "records-x.jsonl")  # none of this library's
    assert RunFolder(folder).read()[2] == 1
    (folder / "tokens.json").write_text("{")
    with pytest.raises(ValueError, match="tokens.json is not readable JSON .* remove it: a run that goes on makes it"):
        write_report([folder], folder / "report.html")
    for tokens in ({"x": "a"}, {"-1": "a"}, {"1": 7}, {"1": None}):
        with pytest.raises(ValueError, match="tokens.json must hold texts by the ids of tokens"):
            write_report([fresh(tokens=tokens)], folder / "report.html")


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 0.0, -1.0])
def test_times_that_are_none(run, fresh, seconds):
    lines = [json.loads(line) for line in (run / "records-0.jsonl").read_text().splitlines()]
    folder = fresh([lines[0], changed(lines[1], ("value", "runs", "plain", "seconds"), seconds)])
    with pytest.raises(ValueError, match=f"{folder}.*seconds must be a positive number, got {seconds}"):
        RunFolder(folder).summary()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes are of Unix")
def test_pipes(fresh):
    folder = fresh([{"made_with": {}}])
    (folder / "records-0.jsonl").unlink()
    os.mkfifo(folder / "records-0.jsonl")
    with pytest.raises(ValueError, match="records-0.jsonl is no regular file"):
        RunFolder(folder).read()


def test_an_evaluation_is_called_as_its_folder(run, tiny_drafter_dir, tmp_path, monkeypatch, dspark):
    drafter = shutil.copytree(tiny_drafter_dir, tmp_path / "drafter")
    for name in ("qwen3.5", "qwen3.6"):
        shutil.copytree(run, tmp_path / name)
    monkeypatch.chdir(tmp_path / "qwen3.5")
    assert evaluation_name(".") == "qwen3.5" and evaluation_name("summary.json") == "summary"
    assert add_evaluation(drafter, ".") == Path(drafter) / "evaluations" / "qwen3.5.json"
    (Path(drafter) / "evaluations" / "qwen3.5.json").unlink()
    both = ["--evaluation", ".", "--evaluation", "../qwen3.6"]
    shown = dspark("push", drafter, "org/x", "--dry-run", *both)
    assert "evaluations/qwen3.5.json" in shown.out and "evaluations/qwen3.6.json" in shown.out
    shutil.copytree(run, tmp_path / "other" / "qwen3.6")
    shown = dspark("push", drafter, "org/x", "--dry-run", *both, "--evaluation", "../other/qwen3.6")
    assert shown.code == 2 and "Two of the evaluations would be called 'qwen3.6'" in shown.err
    for name in (".hidden", "..."):
        shutil.copytree(run, tmp_path / name)
        with pytest.raises(ValueError, match=f"would be called {name!r} in the repository; that name is hidden"):
            evaluation_name(tmp_path / name)


def test_an_evaluation_of_other_weights_is_not_pushed(run, tiny_drafter_dir, tmp_path, dspark):
    assert dspark("push", tiny_drafter_dir, "org/x", "--dry-run", "--evaluation", run).code == 0
    drafter = AutoDrafter.from_pretrained(tiny_drafter_dir)
    drafter.layers[0].mlp.down_proj.weight.data *= 2
    drafter.save_pretrained(tmp_path / "trained-on")
    shown = dspark("push", tmp_path / "trained-on", "org/x", "--dry-run", "--evaluation", run)
    assert shown.code == 2 and "The figures of 'first' are of other weights" in shown.err
    records = shutil.copytree(run, tmp_path / "records")
    (records / "summary.json").unlink()
    shown = dspark("push", tiny_drafter_dir, "org/x", "--dry-run", "--evaluation", records)
    assert shown.code == 2 and "makes one of its records, once the run is whole" in shown.err


@pytest.mark.parametrize("kind", ["fixed", "free"])
def test_notes_of_a_run(tmp_path, kind):
    now = {"fixed": {"target": "x"}, "free": {"max_steps": 3}}
    for value in ODD:
        (tmp_path / "run.json").write_text(json.dumps(now | {kind: value}))
        outcome(lambda: check_same_run(tmp_path / "checkpoint-1", now), tmp_path)
