"""Conversations as data sets hold them: a row becomes messages, whatever its columns are called."""

from collections.abc import Mapping, Sequence
from typing import Any

from dspark_hf.files import parse_json
from dspark_hf.messages import shown

_ROLES = ("system", "user", "assistant", "tool")
# What data sets call them otherwise.
_OTHER_ROLES = {"human": "user", "gpt": "assistant"}
_ANSWERS = ("completion", "response", "chosen")
_SHAPES = (
    "'messages', 'conversations', 'prompt' (with 'completion', 'response' or 'chosen'), 'chosen', 'instruction' with "
    "'output', 'turns'"
)
_COLUMNS = ("messages", "conversations", "chosen", "prompt", "instruction", "turns")


def has_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a data set's `row` is a conversation, as [`conversation_of`] reads it, rather than ids and mask."""
    return "messages" in row or ("input_ids" not in row and any(name in row for name in _COLUMNS))


def conversation_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The conversation of a data set's row.

    Of the columns that are filled, the first of these counts; where text is said, messages will do, and the other way
    round:

    * `messages` or `conversations`: `{"role", "content"}`, or ShareGPT's `{"from", "value"}`;
    * `prompt` with `completion`, `response` or `chosen`: a user's text and the answer;
    * `chosen` alone: messages (the `rejected` ones are nothing to learn);
    * `instruction` with `output`, and perhaps `input`: what alpaca has;
    * `turns`: what the user says, turn by turn; `prompt` alone: one such turn.

    A column `system` with text goes in front, where the messages have no system message. Contents in parts are joined
    if all are text. Tool calls whose arguments are JSON text get what that says, as chat templates expect it.

    Args:
        row (`Mapping`): The row; columns that are `None` or empty count as absent.

    Returns:
        `dict`: `messages`; `complete` (`False` if the last answer was cut off by a length limit); and, where the row
        has them, `thinking` (whether the chat template had `enable_thinking` on), `reasoning_effort` and `tools` (for
        the template) and `answer_ids` (the ids of the last answer, its end included, as the target made them).

    Raises:
        `ValueError`: If the row has no messages, or a value cannot be used.
    """
    messages = [_as_message(message) for message in _messages(row)]
    system = row.get("system")
    if isinstance(system, str) and system and messages and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": system})
    check_messages(messages)
    complete = row.get("complete")
    if not isinstance(complete, bool | None):
        raise ValueError(f"Expected 'complete' to be true or false, got {shown(complete)}.")
    extras = {"thinking": row.get("thinking"), "tools": _tools(row), "answer_ids": row.get("answer_ids")}
    if not isinstance(extras["thinking"], bool | None):
        raise ValueError(f"Expected 'thinking' to be true, false or absent, got {shown(extras['thinking'])}.")
    if not isinstance(row.get("reasoning_effort"), str | None):
        raise ValueError(f"Expected 'reasoning_effort' to be text or absent, got {shown(row['reasoning_effort'])}.")
    extras["reasoning_effort"] = row.get("reasoning_effort")
    ids = extras["answer_ids"]
    if ids is not None and not (
        isinstance(ids, list | tuple) and ids and all(type(one) is int and one >= 0 for one in ids)
    ):
        raise ValueError(f"Expected 'answer_ids' to be token ids or absent, got {shown(ids)}.")
    extras = {name: value for name, value in extras.items() if value is not None}
    return {"messages": messages, "complete": complete is not False, **extras}


def as_messages(conversation: str | Sequence[str] | Sequence[dict]) -> list[dict]:
    """A `conversation`, one user turn, or several, or messages, as messages.

    Raises:
        `ValueError`: If it is none of these.
    """
    turns = [conversation] if isinstance(conversation, str) else conversation
    if not isinstance(turns, (list, tuple)):
        raise ValueError(f"Expected text, a list of turns or a list of messages, got {type(turns).__name__}.")
    return [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in turns]


def check_messages(messages: Sequence[dict]) -> None:
    """Check that `messages` is a non-empty list of `{"role", "content"}` with known roles.

    The content may be `None` beside tool calls.

    Raises:
        `ValueError`: If not.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"Expected a non-empty list of messages, got {shown(messages)}.")
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        is_call = content is None and isinstance(message, dict) and message.get("tool_calls")
        if not isinstance(content, str) and not is_call:
            raise ValueError(f"Expected each message to be {{'role': ..., 'content': text}}, got {shown(message)}.")
        if message.get("role") not in _ROLES:
            raise ValueError(f"Expected a role out of {_ROLES}, got {shown(message.get('role'))}.")
        if not is_call and not is_unicode(content):
            raise ValueError(f"Expected text, got half of a surrogate pair in {shown(content)}.")


def call_names(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The functions that tool calls in `messages` name."""
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    functions = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
    return [str(function["name"]) for function in functions if isinstance(function, Mapping) and "name" in function]


def _messages(row: Mapping[str, Any]) -> list[Any]:
    """The messages as the row has them."""
    answer = next((row[name] for name in _ANSWERS if row.get(name)), None)
    for name in ("messages", "conversations"):
        if row.get(name):
            return _listed(row[name])
    if answer is not None and (row.get("prompt") or "chosen" in row):
        answers = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else _listed(answer)
        # What was chosen may be the whole conversation.
        is_whole = not isinstance(answer, str) and _as_message(answers[0]).get("role") in ("system", "user")
        return answers if is_whole or not row.get("prompt") else [*as_messages(row["prompt"]), *answers]
    if isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        parts = [row["instruction"], row.get("input") or ""]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"Expected 'input' to be text, got {shown(row['input'])}.")
        question = "\n\n".join(part for part in parts if part)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
    for name in ("turns", "prompt"):
        if row.get(name):
            return as_messages(row[name])
    present = [name for name in _COLUMNS if name in row and name != "instruction"]
    if not present:
        raise ValueError(f"Expected one of {_SHAPES}, got {sorted(row)}.")
    empty = row[present[0]]
    return as_messages(empty) if present[0] in ("turns", "prompt") else _listed(empty)


def _listed(messages: Any) -> list[Any]:
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"Expected a non-empty list of messages, got {shown(messages)}.")
    return list(messages)


def _as_message(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    # Data sets fill up messages with absent keys.
    given = {key: value for key, value in message.items() if value is not None}
    if "role" not in given and "from" in given:
        given = {"role": given.pop("from"), "content": given.pop("value", given.get("content")), **given}
    if isinstance(given.get("role"), str):
        given["role"] = _OTHER_ROLES.get(given["role"], given["role"])
    if isinstance(given.get("content"), list | tuple):
        given["content"] = _joined(given["content"])
    if isinstance(given.get("tool_calls"), list | tuple) and given["tool_calls"]:
        given["tool_calls"] = [_as_call(call) for call in given["tool_calls"]]
        return {**given, "content": given.get("content")}
    if (calls := given.pop("tool_calls", None)) is not None and not isinstance(calls, list | tuple):
        raise ValueError(f"Expected tool_calls to be a list, got {shown(calls)}.")
    # An absent text is shown as it was given.
    return given if "content" in given or "content" not in message else {**given, "content": None}


def _joined(parts: Sequence[Any]) -> str:
    """The text of a content in parts."""
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"Expected each part of a content to be text, got {shown(list(parts))}.")
    return "".join(texts)


def _as_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = parse_json(function["arguments"])
    except ValueError as error:
        raise ValueError(
            f"The arguments of the call of {shown(function.get('name'))} are no JSON: {error}."
        ) from error
    return {**call, "function": {**function, "arguments": arguments}}


def _tools(row: Mapping[str, Any]) -> list[dict] | None:
    tools = row.get("tools") or None
    if isinstance(tools, str):
        try:
            tools = parse_json(tools)
        except ValueError as error:
            raise ValueError(
                f"Expected 'tools' to be a list of functions, got text that is no JSON: {error}."
            ) from error
    if tools is not None and not (isinstance(tools, list | tuple) and all(isinstance(one, Mapping) for one in tools)):
        raise ValueError(f"Expected 'tools' to be a list of functions, got {shown(tools)}.")
    return list(tools) if tools else None


def is_unicode(text: str) -> bool:
    """Whether a `text` is one: no half of a surrogate pair stands in it, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
