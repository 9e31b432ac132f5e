"""`dspark evaluate` and `dspark report`, from prompts to a page."""

import json
import shutil

import pytest


@pytest.fixture
def folder(tmp_path):
    """Tasks as files: one with two turns, one with categories."""
    (tmp_path / "tasks").mkdir()
    rows = {
        "mt-bench": [{"turns": [f"Count to {number}.", "And back?"]} for number in range(2)],
        "spec-bench": [
            {"turns": [text], "category": category}
            for text, category in (("One.", "writing"), ("Two.", "coding"), ("Three.", "qa"), ("Four.", "qa"))
        ],
    }
    for name, lines in rows.items():
        (tmp_path / "tasks" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "tasks"


def test_from_tasks_to_a_page(dspark, models, folder, tmp_path):
    out = tmp_path / "run"
    outcome = dspark(
        "evaluate", *models, "--task", "mt-bench", "--task", "spec-bench", "--task-folder", folder, "--out", out,
        "--speculation", "alone", "--speculation", "default", "--prompt-lookup", "3", "--synthetic-acceptance", "0.8",
        "--temperature", "0", "--temperature", "1", "--max-new-tokens", "10", "--dtype", "float32",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    summary = json.loads((out / "summary.json").read_text())
    rows = summary["rows"]
    assert {row["task"] for row in rows} == {"mt-bench", "spec-bench", "all tasks"}
    assert {row["category"] for row in rows} == {None, "multi-turn conversation", "qa"}
    assert {row["num_answers"] for row in rows if row["task"] == "mt-bench"} == {4}
    assert all(row["identical"]["differences"] == [] for row in rows if row["identical"] is not None)
    # A file is no whole task where the task is known to have more.
    assert summary["made_with"]["tasks"][0]["cut"] == "2 of 80" and "mt-bench (2 of 80)" in outcome.out
    assert "Baseline of ratios and identical ids: plain generate()" in outcome.out
    refused = dspark("evaluate", *models, "--task", "mt-bench", "--task-folder", folder, "--out", out, "--resume")
    assert refused.code == 2 and "holds a finished run" in refused.err
    shown = dspark("report", out)
    assert shown.code == 0, shown.err
    assert (out / "report.html").is_file() and (out / "report" / "tau.png").is_file()
    assert "report.html" in shown.out and "chat template" in shown.out


def test_two_drafters_by_name(dspark, models, tiny_drafter_dir, folder, tmp_path):
    place = models[models.index("--target") + 1]
    options = ["--task", folder / "spec-bench.jsonl", "--max-new-tokens", "4", "--no-plain", "--limit", "2"]
    outcome = dspark("evaluate", "--target", place, "--drafter", f"a={tiny_drafter_dir}", "--drafter",
                     f"b={tiny_drafter_dir}", *options, "--out", tmp_path / "run")  # fmt: skip
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["made_with"]["ways"]) == ["a", "b"]
    assert "No plain runs, so no ratios" in outcome.out
    assert summary["made_with"]["tasks"][0]["indices"] == [0, 2]


def test_a_path_with_an_equals_sign_is_a_path(dspark, models, tiny_drafter_dir, folder, tmp_path, monkeypatch):
    place = models[models.index("--target") + 1]
    (tmp_path / "lr=1").mkdir()
    shutil.copytree(tiny_drafter_dir, tmp_path / "lr=1" / "last")
    shutil.copy(folder / "spec-bench.jsonl", tmp_path / "lr=1" / "some.jsonl")
    monkeypatch.chdir(tmp_path)
    outcome = dspark("evaluate", "--target", place, "--drafter", "lr=1/last", "--drafter", "named=lr=1/last", "--task",
                     "lr=1/some.jsonl", "--max-new-tokens", "4", "--no-plain", "--limit", "1",
                     "--out", "run")  # fmt: skip
    assert outcome.code == 0, outcome.err
    made_with = json.loads((tmp_path / "run" / "summary.json").read_text())["made_with"]
    assert list(made_with["ways"]) == ["last", "named"] and made_with["tasks"][0]["name"] == "some"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "nothing"], "There is no task and no file 'nothing'. Tasks are gsm8k,"),
        (["--task", "spec-bench", "--speculation", "fast"], "'fast' is no way to speculate"),
        (["--task", "spec-bench", "--temperature", "0", "--temperature", "0"], "different numbers"),
        (["--task", "spec-bench", "--raw", "--thinking"], "thinking and reasoning_effort are the chat template's"),
        (["--task", "spec-bench", "--task", "spec-bench"], "Two tasks are called spec-bench"),
        (
            ["--task", "spec-bench", "--drafter", "org/last", "--drafter", "other/last"],
            "Two drafters are called 'last'",
        ),
        (["--task", "spec-bench", "--drafter", "=org/last"], "needs both a name and a place, got '=org/last'"),
        (["--task", "spec-bench", "--drafter", "last="], "needs both a name and a place, got 'last='"),
    ],
)
def test_bad_options_are_told_before_anything_is_loaded(dspark, folder, tmp_path, options, message):
    arguments = ["--target", "/no/such", "--task-folder", folder, "--out", tmp_path / "run"]
    outcome = dspark("evaluate", *arguments, *options)
    assert outcome.code == 2 and message in outcome.err


def test_a_report_needs_a_run(dspark, tmp_path):
    outcome = dspark("report", tmp_path)
    assert outcome.code == 2 and "holds none. Make one: dspark evaluate --out FOLDER." in outcome.err


def test_a_place_that_takes_no_run_is_told_before_anything_is_loaded(dspark, folder, tmp_path):
    options = ["evaluate", "--target", "/no/such", "--task", "spec-bench", "--task-folder", folder, "--out"]
    outcome = dspark(*options, folder / "spec-bench.jsonl")
    assert outcome.code == 2 and "A run needs a folder" in outcome.err and "Choose another --out" in outcome.err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records-0.jsonl").write_text("{}")
    outcome = dspark(*options, tmp_path / "run")
    assert outcome.code == 2 and "is what an earlier run left" in outcome.err


def test_a_target_without_a_tokenizer_is_told(dspark, tiny_target_dir, tiny_drafter_dir, tmp_path):
    target = shutil.copytree(tiny_target_dir, tmp_path / "target")
    for file in target.glob("*token*"):
        file.unlink()
    outcome = dspark("diagnose", target, tiny_drafter_dir)
    assert outcome.code == 2 and "has no files of a tokenizer, which a target needs. Save it there" in outcome.err
