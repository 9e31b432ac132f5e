"""Options that a chat template does not know are refused, those that it knows taken, whatever its own choice is."""

import copy
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from encoders import without_template, write_encoding  # noqa: E402

from dspark_hf.data.encoding_file import EncodingFile  # noqa: E402
from dspark_hf.data.template_options import check_template_options  # noqa: E402

USERS = "{% for message in messages %}u:{{ message['content'] }}\n{% endfor %}a:"
THINKS = USERS + "{% if enable_thinking is not defined or enable_thinking %}<t>{% endif %}"
THINKS_IF_ASKED = USERS + "{% if enable_thinking is defined and enable_thinking %}<t>{% endif %}"
EFFORT = "{{ reasoning_effort | default('medium') }}" + USERS
EFFORT_OF_THOUGHTS = (
    THINKS_IF_ASKED + "{% if enable_thinking is defined and enable_thinking and reasoning_effort is defined %}"
    "{{ {'high': '', 'max': 'Think a lot. '}[reasoning_effort] }}{% endif %}"
)
STRICT = (
    "{% if reasoning_effort is defined and reasoning_effort not in ['low', 'high'] %}"
    "{{ raise_exception('low or high') }}{% endif %}{% if reasoning_effort == 'high' %}Think.{% endif %}" + USERS
)


@pytest.fixture
def with_template(tiny_tokenizer):
    def make(template):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.mark.parametrize(
    ("template", "options"),
    [
        (THINKS, {"thinking": True}),
        (THINKS, {"thinking": False}),
        (THINKS_IF_ASKED, {"thinking": True}),
        (THINKS_IF_ASKED, {"thinking": False}),
        (EFFORT, {"reasoning_effort": "high"}),
        (EFFORT, {"reasoning_effort": "medium"}),
        (STRICT, {"reasoning_effort": "low"}),
        (EFFORT_OF_THOUGHTS, {"thinking": True, "reasoning_effort": "max"}),
        (USERS, {}),
    ],
)
def test_what_a_template_knows_is_taken(with_template, template, options):
    check_template_options(with_template(template), **options)


@pytest.mark.parametrize(
    ("template", "options", "told"),
    [
        (USERS, {"thinking": True}, "with and without --thinking, .* Leave it out or name a target"),
        (EFFORT, {"thinking": False}, "with and without --no-thinking, .* whose template knows enable_thinking"),
        (THINKS, {"thinking": True, "reasoning_effort": "max"}, "with and without --reasoning-effort 'max'"),
        (EFFORT_OF_THOUGHTS, {"reasoning_effort": "max"}, "Leave it out, add --thinking where the template"),
        (STRICT, {"reasoning_effort": "max"}, "refuses a conversation .*low or high"),
        (None, {"thinking": True}, "has no chat template that --thinking could be for. Leave it out"),
    ],
)  # fmt: skip
def test_what_it_does_not_know_is_refused(with_template, template, options, told):
    with pytest.raises(ValueError, match=told):
        check_template_options(with_template(template), **options)


def test_encoding_files(tiny_tokenizer, tmp_path):
    tokenizer = without_template(tiny_tokenizer)
    tokenizer.encoding_file = EncodingFile(write_encoding(tmp_path) / "encoding" / "encoding_dsv4.py", "org/V4")
    for options in ({"thinking": True}, {"thinking": False}, {"thinking": True, "reasoning_effort": "low"}):
        check_template_options(tokenizer, **options)
    with pytest.raises(ValueError, match="with and without --reasoning-effort 'ma"):
        check_template_options(tokenizer, reasoning_effort="max")
