"""Prompts from files, and batches from prompts."""

import copy
import json

import pytest

from dspark_hf.evaluation import encode_prompts, load_prompts


@pytest.fixture
def write(tmp_path):
    def write_lines(*lines) -> str:
        path = tmp_path / "data.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return str(path)

    return write_lines


def test_first_turn_of_each_record(write):
    system, user, answer = ({"role": role, "content": role} for role in ("system", "user", "assistant"))
    path = write({"turns": ["one", "two"]}, "", {"messages": [system, user, answer, user]})
    assert load_prompts(path) == [[{"role": "user", "content": "one"}], [system, user]]


def test_limit_takes_from_the_top(write):
    path = write({"turns": ["one"]}, {"turns": ["two"]})
    assert [prompt[0]["content"] for prompt in load_prompts(path, limit=1)] == ["one"]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load_prompts(path, limit=0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no conversations"),
        (["", " "], "no conversations"),
        ([{"turns": ["fine"]}, "{broken"], "line 2"),
        ([{"text": "no turns"}], "line 1.*Expected one of 'messages', 'conversations', 'prompt'"),
        ([{"turns": []}], "line 1"),
        ([{"messages": [{"role": "assistant", "content": "hello"}]}], "record 1: no user message"),
    ],
)
def test_bad_data_is_named(write, lines, message):
    with pytest.raises(ValueError, match=message):
        load_prompts(write(*lines))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing.jsonl"):
        load_prompts(tmp_path / "nothing.jsonl")


def test_batch_goes_through_the_template_and_is_padded_on_the_left(tiny_tokenizer):
    inputs = encode_prompts(["hi", [{"role": "user", "content": "longer"}]], tiny_tokenizer)
    texts = tiny_tokenizer.batch_decode(inputs["input_ids"])
    assert texts == ["<pad>" * 4 + "u:hi\na:", "u:longer\na:"]
    assert inputs["attention_mask"].tolist() == [[0] * 4 + [1] * 7, [1] * 11]


def test_without_a_template_the_text_is_taken_raw(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", None)
    inputs = encode_prompts(["hi there"], tiny_tokenizer)
    assert tiny_tokenizer.decode(inputs["input_ids"][0]) == "hi there"


def test_empty_prompt_is_refused(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match="encodes to no tokens"):
        encode_prompts(["fine", ""], tiny_tokenizer)


def test_padding_needs_a_token(tiny_tokenizer):
    bare = copy.deepcopy(tiny_tokenizer)
    bare.pad_token = None
    assert encode_prompts(["a", "bc"], bare)["input_ids"][0, 0] == bare.eos_token_id
    bare.eos_token = None
    assert encode_prompts(["same", "size"], bare)["input_ids"].shape == (2, 9)
    with pytest.raises(ValueError, match="neither a pad nor an eos token"):
        encode_prompts(["short", "not so short"], bare)
