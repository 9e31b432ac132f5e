"""Conversations in files, whatever wrote these."""

import gzip
import json

import pytest

from dspark_hf.data.conversations import load_conversations

CONVERSATION = [
    {"role": "user", "content": "Hi there\u2028 you\x85"},
    {"role": "assistant", "content": " Hello, é 🙂"},
]
LINE = json.dumps({"messages": CONVERSATION}, ensure_ascii=False)


@pytest.mark.parametrize(
    "content",
    [
        LINE.encode(),
        b"\xef\xbb\xbf" + LINE.encode() + b"\n",
        LINE.encode() + b"\r\n\r\n",
        gzip.compress(LINE.encode() + b"\n"),
        json.dumps({"conversations": [{"from": "human", "value": CONVERSATION[0]["content"]},
                                      {"from": "gpt", "value": CONVERSATION[1]["content"]}]}).encode(),
        json.dumps({"messages": CONVERSATION, "prompt": None, "turns": []}).encode(),
    ],
    ids=["no last line break", "byte order mark", "carriage returns", "gzip", "ShareGPT", "columns filled up"],
)  # fmt: skip
def test_files_of_any_origin(tmp_path, content):
    path = tmp_path / "data"
    path.write_bytes(content)
    assert load_conversations(path) == [{"messages": CONVERSATION, "complete": True}]


@pytest.mark.parametrize(
    "content", [gzip.compress(LINE.encode())[:-9], LINE.encode("utf-16"), b"\x1f\x8bxxxxxxxxxxxx"]
)
def test_files_that_are_not_text_are_refused(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Cannot read conversations from .*data.jsonl"):
        load_conversations(path)


def test_reads_messages_and_turns(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [{"messages": CONVERSATION, "complete": False, "id": 3}, {"turns": ["A", "B"], "category": "x"}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    users = [{"role": "user", "content": "A"}, {"role": "user", "content": "B"}]
    assert load_conversations(path) == [
        {"messages": CONVERSATION, "complete": False},
        {"messages": users, "complete": True},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [', "Expecting value"),
        ("[1]", "Expected an object with one of 'messages', 'conversations', 'turns', 'prompt', got '.1.'"),
        ('{"text": "a"}', "Expected one of 'messages', .* got .'text'."),
        ('{"turns": ["half \\ud83d of one"]}', "Expected text, got half of a surrogate pair in 'half"),
        ('{"messages": []}', "Expected a non-empty list of messages"),
        ('{"messages": "a"}', "Expected a non-empty list of messages"),
        ('{"turns": []}', "Expected a non-empty list of messages"),
        ('{"turns": 3}', "Expected text, a list of turns"),
        ('{"turns": [3]}', "Expected each message to be"),
        ('{"messages": [{"role": "user"}]}', "Expected each message to be"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "Expected a role out of .* got 'robot'"),
        ('{"turns": ["a"], "complete": 1}', "Expected 'complete' to be true or false, got 1"),
    ],
)
def test_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"turns": ["fine"]}}\n\n{line}\n')
    with pytest.raises(ValueError, match=f"data.jsonl, line 3: {message}"):
        load_conversations(path)


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Cannot read conversations from .*nothing.jsonl"):
        load_conversations(tmp_path / "nothing.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(ValueError, match="holds no conversations"):
        load_conversations(empty)
