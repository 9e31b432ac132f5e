import copy

import pytest

from dspark_hf.data.chat import encode_conversation, prompt_ids

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
THOUGHTS_OF_THE_LAST_ANSWER = (
    "{% for m in messages %}<mask>{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}"
    "<t>{{ m['reasoning_content'] or '' }}</t>{% endif %}{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<mask>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<t></t>{% endif %}{% endif %}"
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
    assert cut["input_ids"] == whole["input_ids"][: len(cut["input_ids"])]


# As Qwen3's: the last answer is shown with a thought, an empty one where no "</think>" is found, and stripped.
THINKING = (
    "{% for m in messages %}<mask>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}START"
    "{% set parts = m['content'].split('</think>') %}"
    "{% if loop.last %}{% if parts|length > 1 %}{{ '<think>\n' + parts[0].split('<think>')[-1].strip() }}"
    "{% else %}{{ '<think>\n' }}{% endif %}{{ '\n</think>\n\n' }}{% endif %}{{ parts[-1].strip() }}<eos>END"
    "{% else %}{{ m['content'] }}<eos>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<mask>assistant\nOPENING{% endif %}"
)


@pytest.mark.parametrize("tags", [("", ""), ("{% generation %}", "{% endgeneration %}")], ids=["prefixes", "blocks"])
@pytest.mark.parametrize(
    ("opening", "written", "complete"),
    [
        ("", "<think>\nThe user asks", False),
        ("", "<think>\n\nhm\n</think>so", False),
        ("", "The user asks", False),
        ("", "<think>\n\n hm\n</think>so ", True),
        ("", "<think>\nhm\n</think>\n\nso", True),
        ("<think>\n", "The user asks", False),
        ("<think>\n", "hm\n</think>so", False),
        ("<think>\n", "\n hm</think>so", True),
        ("<think>\n", "hm\n</think>\n\nso", True),
    ],
)
def test_the_last_answer_is_learned_as_it_was_written(tokenizer, opening, tags, written, complete):
    template = THINKING.replace("START", tags[0]).replace("END", tags[1])
    tokenizer.chat_template = template.replace("OPENING", opening)
    messages = [*TWO_TURNS[:3], {"role": "assistant", "content": written}]
    encoded = encode_conversation(tokenizer, messages, complete=complete)
    first, last = marked(tokenizer, encoded)
    assert first == "Hello, you.<eos>"
    assert last.removeprefix("" if written.startswith("<think>") else opening) == written + "<eos>" * complete
    prompt = prompt_ids(tokenizer, messages[:-1])
    assert encoded["input_ids"][: len(prompt)] == prompt


def test_a_cut_answer_beside_its_thoughts_is_shown_by_the_template(tokenizer):
    tokenizer.chat_template = THOUGHTS_OF_THE_LAST_ANSWER
    messages = [*TWO_TURNS[:3], {"role": "assistant", "content": "so", "reasoning_content": "hm"}]
    encoded = encode_conversation(tokenizer, messages, complete=False)
    assert marked(tokenizer, encoded) == [" Hello, you.<eos>", "<t>hm</t>so"]


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


@pytest.mark.parametrize(("template", "message"), [(DROPS_EARLIER_ANSWERS, 1), (OTHER_OPENING, 3)])
def test_unstable_template_is_refused(tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=f"not prefix-stable: message {message} .* generation"):
        encode_conversation(tokenizer, TWO_TURNS)


@pytest.mark.parametrize(("thinking", "last"), [(None, "<t>hm</t>so<eos>"), (False, "so<eos>")])
def test_earlier_answers_are_marked_as_the_template_shows_them(tokenizer, thinking, last):
    """As Qwen3 does: thoughts of the last answer alone are shown, and are part of the opening if thinking is off."""
    tokenizer.chat_template = THOUGHTS_OF_THE_LAST_ANSWER
    messages = [*TWO_TURNS[:3], {"role": "assistant", "content": "so", "reasoning_content": "hm"}]
    if thinking is False:
        del messages[-1]["reasoning_content"]
    encoded = encode_conversation(tokenizer, messages, thinking=thinking)
    assert marked(tokenizer, encoded) == [" Hello, you.<eos>", last]
    rendered = tokenizer.apply_chat_template(messages, return_dict=True)
    assert encoded["input_ids"] == rendered["input_ids"]


def test_conversation_that_the_template_refuses_is_named(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    messages = [{"role": "system", "content": "a"}, *TWO_TURNS[:2]]
    expected = r"refuses a conversation of roles \['system', 'user', 'assistant'\]: System role not supported"
    with pytest.raises(ValueError, match=expected):
        encode_conversation(tokenizer, messages)
    with pytest.raises(ValueError, match="refuses a conversation of roles"):
        prompt_ids(tokenizer, messages[:2])


def test_without_a_template_a_prompt_and_its_answer_are_raw_text(tokenizer):
    tokenizer.chat_template = None
    question, answer = TWO_TURNS[:2]
    prompt = prompt_ids(tokenizer, [question])
    encoded = encode_conversation(tokenizer, [question, answer])
    assert encoded["input_ids"] == [*prompt, *tokenizer(answer["content"])["input_ids"], tokenizer.eos_token_id]
    assert encoded["loss_mask"] == [False] * len(prompt) + [True] * (len(encoded["input_ids"]) - len(prompt))
    cut = encode_conversation(tokenizer, [question, answer], complete=False)
    assert cut["input_ids"] == encoded["input_ids"][:-1]
    # Whatever the text would become: what the target wrote is given.
    given = encode_conversation(tokenizer, [question, answer], answer_ids=[3, 5, 257])
    assert given["input_ids"] == [*prompt, 3, 5, 257] and given["loss_mask"][-3:] == [True] * 3
    with pytest.raises(ValueError, match="answer_ids has 99999, and the tokenizer ends at"):
        encode_conversation(tokenizer, [question, answer], answer_ids=[99999])


def test_without_a_template_there_is_one_turn(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template; .*a prompt and its answer can be taken as raw text"):
        encode_conversation(tokenizer, TWO_TURNS)
    with pytest.raises(ValueError, match="has no chat template; .*Without one, the call of 'look_up' has no text"):
        encode_conversation(tokenizer, [TWO_TURNS[0], CALL])


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look_up", "arguments": {"x": 1}}}]}
TOOLS = (
    "{% for t in tools or [] %}<mask>{{ t['name'] }}{% endfor %}{% for m in messages %}<mask>{{ m['role'] }}\n"
    "{{ m['content'] or '' }}{% for c in m['tool_calls'] or [] %}{{ c['function'] | tojson }}{% endfor %}<eos>\n"
    "{% endfor %}{% if add_generation_prompt %}<mask>assistant\n{% endif %}"
)


def test_tool_calls_are_what_the_template_shows(tokenizer):
    tokenizer.chat_template = TOOLS
    encoded = encode_conversation(tokenizer, [TWO_TURNS[0], CALL], tools=[{"name": "look_up"}])
    assert marked(tokenizer, encoded) == ['{"name": "look_up", "arguments": {"x": 1}}<eos>']
    assert tokenizer.decode(encoded["input_ids"]).startswith("<mask>look_up<mask>user")


@pytest.mark.parametrize("content", [None, "", "text"])
def test_a_template_that_shows_no_calls_is_no_teacher(tokenizer, content):
    with pytest.raises(ValueError, match=r"leaves out a call of 'look_up'|refuses a conversation of roles"):
        encode_conversation(tokenizer, [TWO_TURNS[0], {**CALL, "content": content}])


def test_a_template_that_shows_no_thoughts_is_no_teacher(tokenizer):
    messages = [TWO_TURNS[0], {**TWO_TURNS[1], "reasoning_content": "hm"}]
    with pytest.raises(ValueError, match="leaves out the last answer's thoughts"):
        encode_conversation(tokenizer, messages)


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
