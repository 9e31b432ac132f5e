"""Prompts from files and datasets, whatever their columns are called."""

import json

import pytest
from datasets import Dataset

from dspark_hf.data.prompts import load_prompts

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


@pytest.mark.parametrize("column", ROWS)
@pytest.mark.parametrize("streaming", [True, False])
def test_columns_of_datasets(tmp_path, column, streaming):
    folder = write(tmp_path / "data", [{column: ROWS[column], "other": 1}] * 3)
    prompts = list(load_prompts(folder, streaming=streaming))
    assert prompts == [[USER, ANSWER] if column in ("messages", "conversations") else [USER]] * 3


def test_limit_takes_from_the_top(tmp_path):
    folder = write(tmp_path / "data", [{"prompt": f"What is {number}?"} for number in range(5)])
    for source in (folder, tmp_path / "file.jsonl"):
        if source is not folder:
            source.write_text("".join(json.dumps({"turns": [f"What is {n}?"]}) + "\n" for n in range(5)))
        assert [p[0]["content"] for p in load_prompts(source, limit=2)] == ["What is 0?", "What is 1?"]


def test_unusable_sources_are_named(tmp_path):
    folder = write(tmp_path / "data", [{"text": "x"}])
    with pytest.raises(ValueError, match=r"data, row 0: Expected one of 'messages', .*got \['text'\]"):
        list(load_prompts(folder))
    with pytest.raises(ValueError, match="Cannot read prompts from .*nowhere"):
        list(load_prompts(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="Cannot read prompts from .*split 'test'"):
        list(load_prompts(folder, split="test"))
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        list(load_prompts(folder, limit=0))


def test_parquet_file(tmp_path):
    path = tmp_path / "data.parquet"
    Dataset.from_list([{"messages": [USER, ANSWER]}] * 2).to_parquet(path)
    assert list(load_prompts(path)) == list(load_prompts(path, split="test")) == [[USER, ANSWER]] * 2


def test_odd_rows_of_a_dataset_can_be_set_aside(tmp_path):
    folder, aside = write(tmp_path / "data", [{"prompt": "a"}, {"prompt": None}, {"prompt": "b"}]), []
    prompts = load_prompts(folder, set_aside=lambda row, error: aside.append((row, str(error))))
    assert [p[0]["content"] for p in prompts] == ["a", "b"]
    assert [row for row, _ in aside] == [{"prompt": None}] and "data, row 1: Expected text" in aside[0][1]
