"""Conversations in files, whatever wrote these."""

import datetime
import gzip
import json
from decimal import Decimal

import pyarrow
import pytest
from datasets import Dataset
from pyarrow import parquet

from dspark_hf.data.conversation_files import iterate_places, load_conversations
from dspark_hf.data.conversations import conversation_of, has_conversation
from dspark_hf.data.json_array import array_elements
from dspark_hf.data.left_out import LeftOut
from dspark_hf.data.parquet import parquet_rows

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
    "content", [gzip.compress(LINE.encode())[:-9], b"[" + LINE.encode("utf-16"), b"\x1f\x8bxxxxxxxxxxxx", b"PAR1xx"]
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
        ('{"messages": [', "It is no JSON: Expecting value, column 15."),
        ("[1]", "Expected an object with 'messages' or the like, got .1.."),
        ('{"instruction": "a", "output": "b", "input": 3}', "Expected 'input' to be text, got 3"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "Expected each part of a content to be"),
        ('{"turns": ["a"], "tools": "["}', "Expected 'tools' to be a list of functions, got text that is no JSON"),
        ('{"turns": ["a"], "tools": [3]}', "Expected 'tools' to be a list of functions, got .3."),
        ('{"turns": ["a"], "answer_ids": [-1]}', "Expected 'answer_ids' to be token ids or absent, got .-1."),
        ('{"turns": ["a"], "thinking": 1}', "Expected 'thinking' to be true, false or absent, got 1"),
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


QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, ANSWER]},
        {"messages": [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]},
        {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]},
        {"prompt": "q", "completion": "a"},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"prompt": "q", "response": "a", "messages": None},
        {"prompt": [QUESTION], "response": "a"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [QUESTION]},
        {"prompt": "q", "chosen": [QUESTION, ANSWER], "rejected": [QUESTION]},
        {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION]},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a"},
    ],
    ids=str,
)
def test_shapes_of_a_question_and_its_answer(row):
    assert has_conversation(row)
    assert conversation_of(row) == {"messages": [QUESTION, ANSWER], "complete": True}


def test_what_stands_beside_the_messages():
    row = {"conversations": [QUESTION, ANSWER], "system": "s", "thinking": False, "complete": False, "tools": "[{}]"}
    given = conversation_of(row)
    assert given.pop("messages") == [{"role": "system", "content": "s"}, QUESTION, ANSWER]
    assert given == {"thinking": False, "complete": False, "tools": [{}]}
    assert conversation_of({"instruction": "q", "input": "i", "output": "a"})["messages"][0]["content"] == "q\n\ni"


def test_tool_calls_come_without_text_and_with_json():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {"messages": [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    answer = conversation_of(row)["messages"][1]
    assert answer["content"] is None and answer["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    call["function"]["arguments"] = "{"
    with pytest.raises(ValueError, match="The arguments of the call of 'f' are no JSON"):
        conversation_of(row)


@pytest.mark.parametrize("kind", ["array", "array on one line", "compressed array", "parquet"])
def test_kinds_of_files(tmp_path, kind):
    path, rows = (
        tmp_path / "data",
        [{"prompt": "q", "completion": "a"}, {"prompt": None, "messages": [QUESTION, ANSWER]}],
    )
    rows[0]["messages"], rows[1]["completion"] = None, None
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        text = json.dumps(rows, indent=None if kind.endswith("line") else 2).encode()
        path.write_bytes(gzip.compress(text) if kind.startswith("compressed") else text)
    assert [given["messages"] for given in load_conversations(path)] == [[QUESTION, ANSWER]] * 2


ELEMENTS = [12, -3.5, 1e5, True, None, 'a,]"ü😀', [], [1, [2]], {}, {"a": [1, {"b": "]"}]}, ""]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_arrays_are_read_in_pieces(indent, size):
    """Whatever is cut wherever: the same elements, or an error, as where the text is read at once."""
    whole = json.dumps(ELEMENTS, indent=indent, ensure_ascii=False).encode()
    damaged = [whole[:place] + change + whole[place + 1 :] for place in range(1, len(whole)) for change in (b"", b"]")]
    for text in (whole, b" " + whole + b"\n\t", b"[]", b"[ ]", *damaged):
        try:
            expected = json.loads(text)
        except ValueError:
            expected = None
        pieces = (text[place : place + size] for place in range(0, len(text), size))
        try:
            assert list(array_elements(pieces, "x")) == expected
        except ValueError:
            assert expected is None


def test_every_type_of_parquet_is_read(tmp_path):
    numbers = {"whole": [1, None], "date": [datetime.date(2020, 1, 2)] * 2, "number": [Decimal("1.5")] * 2}
    text = pyarrow.array(["a", None])
    columns = {
        **numbers,
        "map": pyarrow.array([[("k", "v")], []], pyarrow.map_(pyarrow.string(), pyarrow.string())),
        "pair": pyarrow.array([["a", "b"], None], pyarrow.list_(pyarrow.string(), 2)),
        "large": pyarrow.array([["a"], []], pyarrow.large_list(pyarrow.large_string())),
        "structs": [[{"role": "user", "tools": [{"a": 1}]}], []],
        "words": text.dictionary_encode(),
        "view": text.cast(pyarrow.string_view()),
        "bytes": pyarrow.array([b"ab", b"cd"], pyarrow.binary(2)),
        "none": pyarrow.nulls(2),
    }
    table = pyarrow.concat_tables([pyarrow.table(columns)] * 700)
    for options in ({}, {"store_schema": False}, {"use_dictionary": False}, {"row_group_size": 300}):
        parquet.write_table(table, tmp_path / "x.parquet", **options)
        expected = parquet.read_table(tmp_path / "x.parquet").to_pylist()
        assert list(parquet_rows(tmp_path / "x.parquet")) == expected


def test_rows_of_any_file_are_named(tmp_path):
    array, table = tmp_path / "a.json", tmp_path / "a.parquet"
    array.write_text('[{"prompt": "q"}, 3]')
    with pytest.raises(ValueError, match="a.json, element 2: Expected an object"):
        load_conversations(array)
    array.write_text('[{"prompt": "q"},')
    with pytest.raises(ValueError, match="a.json begins as a JSON array and is none"):
        load_conversations(array)
    Dataset.from_list([{"prompt": "q"}, {"prompt": None}]).to_parquet(table)
    with pytest.raises(ValueError, match="a.parquet, row 2: Expected text"):
        load_conversations(table)


def test_what_is_left_out_is_counted_or_an_error(tmp_path, caplog):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "q"}\n{\n{"text": "x"}\n{"prompt": "r"}\n')
    left_out = LeftOut()
    assert [place for place, _ in iterate_places(path, left_out)] == [f"{path}, line 1", f"{path}, line 4"]
    left_out.tell("data")
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith("data: 2 of 4 conversations are left out: 2 cannot be used (the first: ")
    assert "line 2: It is no JSON" in told and "\n" not in told
    with pytest.raises(ValueError, match="line 2: It is no JSON"):
        list(iterate_places(path, LeftOut(strict=True)))


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Cannot read conversations from .*nothing.jsonl"):
        load_conversations(tmp_path / "nothing.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(ValueError, match="holds no conversations"):
        load_conversations(empty)
