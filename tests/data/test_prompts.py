"""Prompts from files and datasets, whatever their columns are called."""

import json

import pytest
from datasets import Dataset

from dspark_hf.data.prompts import iterate_prompts
from dspark_hf.data.regeneration.questions import unanswered

USER = {"role": "user", "content": "How high is it?"}
ANSWER = {"role": "assistant", "content": "Very."}
ROWS = {
    "messages": [USER, ANSWER],
    "conversations": [{"from": "human", "value": "How high is it?"}, {"from": "gpt", "value": "Very."}],
    "turns": ["How high is it?"],
    "prompt": "How high is it?",
}


def write(folder, rows):
    folder.mkdir()
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def refuse(row, error):
    raise error


@pytest.mark.parametrize("column", ROWS)
def test_columns_of_datasets(tmp_path, column):
    folder = write(tmp_path / "data", [{column: ROWS[column], "other": 1}] * 3)
    prompts = list(iterate_prompts(folder, refuse))
    assert prompts == [[USER, ANSWER] if column in ("messages", "conversations") else [USER]] * 3


def test_limit_takes_from_the_top(tmp_path):
    folder = write(tmp_path / "data", [{"prompt": f"What is {number}?"} for number in range(5)])
    path = tmp_path / "file.jsonl"
    path.write_text("".join(json.dumps({"turns": [f"What is {n}?"]}) + "\n" for n in range(5)))
    given = [[{"role": "user", "content": f"What is {n}?"}] for n in range(5)]
    for source in (folder, path, given):
        assert [p[0]["content"] for p in unanswered(source, set(), refuse, limit=2)] == ["What is 0?", "What is 1?"]


def test_unusable_sources_are_named(tmp_path):
    folder = write(tmp_path / "data", [{"text": "x"}])
    with pytest.raises(ValueError, match=r"data, row 0: Expected one of 'messages', .*got \['text'\]"):
        list(iterate_prompts(folder, refuse))
    with pytest.raises(ValueError, match="Cannot read prompts from .*nowhere"):
        list(iterate_prompts(tmp_path / "nowhere", refuse))
    with pytest.raises(ValueError, match="Cannot read prompts from .*split 'test'"):
        list(iterate_prompts(folder, refuse, split="test"))


def test_parquet_file(tmp_path):
    path = tmp_path / "data.parquet"
    Dataset.from_list([{"messages": [USER, ANSWER]}] * 2).to_parquet(path)
    assert list(iterate_prompts(path, refuse)) == [[USER, ANSWER]] * 2
    assert list(iterate_prompts(path, refuse, split="test")) == [[USER, ANSWER]] * 2


def test_odd_rows_of_a_dataset_can_be_set_aside(tmp_path):
    folder, aside = write(tmp_path / "data", [{"prompt": "a"}, {"prompt": None}, {"prompt": "b"}]), []
    prompts = iterate_prompts(folder, lambda row, error: aside.append((row, str(error))))
    assert [p[0]["content"] for p in prompts] == ["a", "b"]
    assert [row for row, _ in aside] == [{"prompt": None}] and "data, row 1: Expected text" in aside[0][1]
