"""Calls of tools come back as such, whole and streamed; the target's answer is forced here."""

import json
from contextlib import contextmanager

import pytest
import torch
from transformers import AutoTokenizer

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
MESSAGES = [{"role": "user", "content": "Rain?"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
# As tokenizers say how answers are parsed.
TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "a:",
    "fields": {
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*<eos>", "content": "text"},
    },
}  # fmt: skip


@contextmanager
def saying(model, num_prompt_tokens, ids):
    """The model answers a prompt of a length with these tokens, wherever it is asked for them."""

    def force(module, args, kwargs, out):
        num_tokens, positions = kwargs["input_ids"].shape[1], kwargs.get("position_ids")
        if positions is None:
            end = next(
                value for name, value in kwargs.items() if name in ("cache", "past_key_values")
            ).get_seq_length()
            positions = torch.arange(end - num_tokens, end).unsqueeze(0)
        keep = kwargs.get("logits_to_keep", 0)
        positions = positions[0][keep] if isinstance(keep, torch.Tensor) else positions[0][-keep:]
        for row, position in enumerate(positions.tolist()):
            out.logits[0, row] = -30.0
            out.logits[0, row, ids[min(max(position + 1 - num_prompt_tokens, 0), len(ids) - 1)]] = 30.0
        return out

    hook = model.register_forward_hook(force, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@pytest.fixture
def forced(server, monkeypatch):
    """Let the server answer some messages with a text."""
    models = server[2].models
    processor = next(iter(models.loaded_models.values())).processor
    monkeypatch.setattr(processor, "response_template", TEMPLATE, raising=False)
    tokenizer = AutoTokenizer.from_pretrained(server[1])

    def force(messages, text, tools=(TOOL,)):
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tools=list(tools))["input_ids"]
        return saying(models.model, len(ids), [*tokenizer(text).input_ids, tokenizer.eos_token_id])

    return force


@pytest.mark.parametrize("before", ["", "Let me see."])
def test_a_call(server, client, forced, before):
    with forced(MESSAGES, before + CALL):
        answer = client.chat.completions.create(model=server[1], messages=MESSAGES, tools=[TOOL], temperature=0)
    choice = answer.choices[0]
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Rome"}
    assert choice.finish_reason == "tool_calls" and (choice.message.content or "") == before


def test_calls_in_a_stream(server, client, forced):
    with forced(MESSAGES, "Both." + CALL + CALL.replace("Rome", "Oslo")):
        chunks = list(client.chat.completions.create(
            model=server[1], messages=MESSAGES, tools=[TOOL], temperature=0, stream=True
        ))  # fmt: skip
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Rome", "Oslo"]
    assert [call.index for call in calls] == [0, 1] and len({call.id for call in calls}) == 2
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Both."
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_tool_is_not_called(server, client, forced):
    with forced(MESSAGES, "It rains."):
        answer = client.chat.completions.create(
            model=server[1], messages=MESSAGES, tools=[TOOL], temperature=0, stop="rain"
        )
    assert answer.choices[0].message.content == "It " and answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"


def test_what_a_tool_has_told_goes_back(server, client, forced):
    """The messages that the client makes of an answer are taken as they are."""
    with forced(MESSAGES, CALL):
        answer = client.chat.completions.create(model=server[1], messages=MESSAGES, tools=[TOOL], temperature=0)
    message = answer.choices[0].message
    told = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It rains in Rome."}
    answer = client.chat.completions.create(
        model=server[1], messages=[*MESSAGES, message, told], tools=[TOOL], temperature=0, max_tokens=4
    )
    assert answer.usage.completion_tokens == 4


@pytest.mark.parametrize("tools", ["f", [3], {"a": 1}])
def test_tools_that_are_none(server, client, tools):
    import openai

    with pytest.raises(openai.BadRequestError, match="tools must be a list of objects"):
        client.chat.completions.create(model=server[1], messages=MESSAGES, tools=tools)
