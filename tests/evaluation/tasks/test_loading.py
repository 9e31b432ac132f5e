"""Tasks from files and from a Hub, and what is known of where they came from."""

import json

import pytest

from dspark_hf.evaluation import TASKS, load_task, load_tasks
from dspark_hf.evaluation.tasks.catalogue import Task


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_a_task_of_its_name(tmp_path):
    path = write(tmp_path / "chat.jsonl", [{"turns": ["a", "b"]}, {"messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e"}]}])  # fmt: skip
    task = load_task(str(path))
    assert (task.name, task.cut, task.num_available) == ("chat", None, 2)
    turns = [[[message["content"] for message in turn] for turn in one.turns] for one in task.questions]
    assert turns == [[["a"], ["b"]], [["s", "c"], ["e"]]]
    about = task.describe()
    assert about["source"]["file"] == "chat.jsonl" and len(about["source"]["sha256"]) == 64
    assert str(tmp_path) not in json.dumps(about)


def test_a_limit_is_spread_and_a_cut_is_told(tmp_path):
    path = write(tmp_path / "many.jsonl", [{"turns": [str(number)]} for number in range(10)])
    task = load_task(str(path), limit=4)
    assert [question.index for question in task.questions] == [0, 2, 5, 7] and task.cut == "4 of 10"
    assert load_task(f"gsm8k={path}").cut == "10 of 1319" and load_task(str(path), limit=99).cut is None
    assert load_task(str(path)).describe()["digest"] != task.describe()["digest"]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load_task(str(path), limit=0)


def test_spec_benchs_categories(tmp_path):
    rows = [{"turns": ["a"], "category": name} for name in ("writing", "coding", "qa", "rag")]
    path = write(tmp_path / "spec-bench.jsonl", rows)
    (task,) = load_tasks(["spec-bench"], folder=tmp_path)
    multi = "multi-turn conversation"
    assert [question.category for question in task.questions] == [multi, multi, "qa", "rag"]
    assert {question.category for question in load_task(f"chat={path}").questions} == {None}


def test_all_with_a_file_for_one_task(tmp_path, monkeypatch):
    tasks = {name: TASKS[name] for name in ("gsm8k", "alpaca")}
    monkeypatch.setattr("dspark_hf.evaluation.tasks.loading.TASKS", tasks)
    write(tmp_path / "gsm8k.jsonl", [{"turns": ["a"]}])
    other = write(tmp_path / "questions.jsonl", [{"turns": ["b"]}])
    tasks = load_tasks(["all", f"alpaca={other}"], folder=tmp_path)
    assert [(task.name, task.source["file"]) for task in tasks] == [
        ("gsm8k", "gsm8k.jsonl"), ("alpaca", "questions.jsonl"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no conversations"),
        ([{"turns": ["fine"]}, 3], "line 2: Expected an object"),
        ([{"text": "no turns"}], "line 1.*Expected one of"),
        ([{"messages": [{"role": "assistant", "content": "hello"}]}], "line 1: no user message to answer"),
    ],
)
def test_bad_files_are_named(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_task(str(write(tmp_path / "bad.jsonl", rows)))


def test_unknown_tasks_are_named(tmp_path):
    with pytest.raises(ValueError, match="There is no task and no file 'humanevil'. Tasks are gsm8k, math500"):
        load_task("humanevil")
    path = write(tmp_path / "gsm8k.jsonl", [{"turns": ["a"]}])
    with pytest.raises(ValueError, match="Two tasks are called gsm8k"):
        load_tasks(["gsm8k", str(path)], folder=tmp_path)


def test_from_the_hub_with_its_revision(hub, tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    api = HfApi()
    api.create_repo("tester/sums", repo_type="dataset")
    rows = "".join(json.dumps({"question": f"{number} + 1?"}) + "\n" for number in range(3))
    for number, text in enumerate((rows, rows + json.dumps({"question": "new?"}) + "\n")):
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo="test.jsonl", repo_id="tester/sums",
                        repo_type="dataset", commit_message=str(number))  # fmt: skip
    task = Task("sums", "tester/sums", lambda row: [row["question"]], size=4)
    monkeypatch.setitem(TASKS, "sums", task)
    loaded = load_task("sums", limit=2)
    commits = [commit.commit_id for commit in api.list_repo_commits("tester/sums", repo_type="dataset")]
    assert loaded.source["repo"] == "tester/sums" and loaded.source["revision"] == commits[0]
    assert [question.turns[0][0]["content"] for question in loaded.questions] == ["0 + 1?", "2 + 1?"]
    older = load_task("sums", revision=commits[1])
    assert (older.source["revision"], older.num_available, older.cut) == (commits[1], 3, "3 of 4")
    monkeypatch.setitem(TASKS, "sums", Task("sums", "tester/sums", lambda row: [row["prompt"]]))
    with pytest.raises(ValueError, match="tester/sums, row 0: it has not what sums had .*but .'question'"):
        load_task("sums")
    monkeypatch.setitem(TASKS, "gone", Task("gone", "tester/gone", lambda row: [row["a"]]))
    with pytest.raises(ValueError, match="Cannot fetch gone from tester/gone.*file with `turns`: gone=FILE"):
        load_task("gone")


def test_prompts_are_worded_as_in_the_reference():
    assert TASKS["gsm8k"].turns({"question": "1 + 1?"}) == [
        "1 + 1?\nPlease reason step by step, and put your final answer within \\boxed{}."
    ]
    assert TASKS["humaneval"].turns({"prompt": "def f():\n"})[0].endswith("```python\ndef f():\n\n```")
    contest = TASKS["livecodebench"].turns
    assert "following format:\n```python\n# YOUR CODE HERE" in contest({"question_content": "Q"})[0]
    assert "starter code" in contest({"question_content": "Q", "starter_code": "class A"})[0]
    assert TASKS["alpaca"].turns({"instruction": "Do", "input": "this"}) == ["Do\n\nInput:\nthis"]
    assert TASKS["alpaca"].turns({"instruction": "Do", "input": ""}) == ["Do"]
    assert TASKS["mt-bench"].turns({"prompt": ["a", "b"]}) == ["a", "b"]
