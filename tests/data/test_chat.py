import copy
import json

import pytest

from dspark_hf.data.chat import encode_conversation, load_conversations, prompt_ids

CHATML = (
    "{% for m in messages %}<mask>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<mask>assistant\n{% endif %}"
)
GENERATION_BLOCKS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}a:{% generation %}{{ m['content'] }}<eos>"
    "{% endgeneration %}{% else %}u:{{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
# Earlier answers vanish once another turn follows, as templates do that drop earlier thinking.
DROPS_EARLIER_ANSWERS = (
    "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}<mask>{{ m['content'] }}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<mask>{% endif %}"
)
# The opening that is shown for generating is not the one that an answer gets.
OTHER_OPENING = (
    "{% for m in messages %}<mask>{{ m['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}answer{% endif %}"
)
TWO_TURNS = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": " Hello, you."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "\nBecause é 🙂"},
]


@pytest.fixture
def tokenizer(tiny_tokenizer):
    own = copy.deepcopy(tiny_tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["<mask>"]})
    own.chat_template = CHATML
    return own


def marked(tokenizer, encoded):
    """The marked stretches as texts."""
    runs, previous = [], False
    for token, keep in zip(encoded["input_ids"], encoded["loss_mask"], strict=True):
        if keep:
            runs = runs if previous else [*runs, []]
            runs[-1].append(token)
        previous = keep
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("template", [CHATML, GENERATION_BLOCKS], ids=["prefixes", "generation blocks"])
def test_marks_each_answer_with_its_end_of_turn(tokenizer, template):
    tokenizer.chat_template = template
    encoded = encode_conversation(tokenizer, TWO_TURNS)
    assert marked(tokenizer, encoded) == [" Hello, you.<eos>", "\nBecause é 🙂<eos>"]
    assert encoded["input_ids"] == tokenizer.apply_chat_template(TWO_TURNS, return_dict=True)["input_ids"]
    assert {type(keep) for keep in encoded["loss_mask"]} == {bool}


def test_tokens_before_the_first_mark_are_the_prompt(tokenizer):
    encoded = encode_conversation(tokenizer, TWO_TURNS)
    prompt = prompt_ids(tokenizer, TWO_TURNS[:1])
    assert encoded["loss_mask"].index(True) == len(prompt)
    assert encoded["input_ids"][: len(prompt)] == prompt


@pytest.mark.parametrize("template", [CHATML, GENERATION_BLOCKS], ids=["prefixes", "generation blocks"])
def test_cut_answer_does_not_teach_its_end(tokenizer, template):
    tokenizer.chat_template = template
    whole, cut = (encode_conversation(tokenizer, TWO_TURNS, complete=complete) for complete in (True, False))
    assert marked(tokenizer, cut) == [" Hello, you.<eos>", "\nBecause é 🙂"]
    assert cut["input_ids"] == whole["input_ids"]


def test_template_without_special_tokens_marks_the_whole_turn(tiny_tokenizer):
    encoded = encode_conversation(tiny_tokenizer, TWO_TURNS[:2])
    assert marked(tiny_tokenizer, encoded) == [" Hello, you.\n"]


def test_conversation_that_ends_with_a_question_marks_only_the_answers(tokenizer):
    assert marked(tokenizer, encode_conversation(tokenizer, TWO_TURNS[:3], complete=False)) == [" Hello, you.<eos>"]


def test_max_length_cuts_both(tokenizer):
    whole, cut = encode_conversation(tokenizer, TWO_TURNS), encode_conversation(tokenizer, TWO_TURNS, max_length=30)
    assert len(whole["input_ids"]) > 30
    assert cut == {key: values[:30] for key, values in whole.items()}


def test_max_length_must_be_positive(tokenizer):
    with pytest.raises(ValueError, match="max_length must be at least 1, got 0"):
        encode_conversation(tokenizer, TWO_TURNS, max_length=0)


@pytest.mark.parametrize("template", [DROPS_EARLIER_ANSWERS, OTHER_OPENING])
def test_unstable_template_is_refused(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="not prefix-stable: message 1 .* generation"):
        encode_conversation(tokenizer, TWO_TURNS)


def test_missing_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template. Use an instruction-tuned target"):
        encode_conversation(tokenizer, TWO_TURNS)


def test_leading_answer_is_refused(tokenizer):
    with pytest.raises(ValueError, match="starts with an assistant message"):
        encode_conversation(tokenizer, TWO_TURNS[1:])


def test_tokenizer_without_offsets_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="Use a fast tokenizer"):
        encode_conversation(tokenizer, TWO_TURNS)


@pytest.mark.parametrize("prompt", ["Hi", ["Hi"], [{"role": "user", "content": "Hi"}]])
def test_prompt_ends_with_the_opening_of_an_answer(tokenizer, prompt):
    assert tokenizer.decode(prompt_ids(tokenizer, prompt)) == "<mask>user\nHi<eos>\n<mask>assistant\n"


def test_prompt_is_raw_text_without_a_template(tokenizer):
    tokenizer.chat_template = None
    assert tokenizer.decode(prompt_ids(tokenizer, "Hi")) == "Hi"
    with pytest.raises(ValueError, match="only a single turn can be taken as raw text"):
        prompt_ids(tokenizer, ["Hi", "Ho"])


def test_prompt_of_another_type_is_refused(tokenizer):
    with pytest.raises(ValueError, match="Expected text, a list of turns or a list of messages, got int"):
        prompt_ids(tokenizer, 7)


def test_reads_messages_and_turns(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [{"messages": TWO_TURNS, "complete": False, "id": 3}, {"turns": ["A", "B"], "category": "x"}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    users = [{"role": "user", "content": "A"}, {"role": "user", "content": "B"}]
    assert load_conversations(path) == [
        {"messages": TWO_TURNS, "complete": False},
        {"messages": users, "complete": True},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [', "Expecting value"),
        ("[1]", "Expected an object with 'messages' or 'turns'"),
        ('{"text": "a"}', "Expected an object with 'messages' or 'turns'"),
        ('{"messages": []}', "Expected a non-empty list of messages"),
        ('{"messages": "a"}', "Expected a non-empty list of messages"),
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
