"""Conversations as token ids: which tokens the target wrote (and a drafter should learn), and how a prompt ends."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ROLES = ("system", "user", "assistant", "tool")


def load_conversations(path: str | os.PathLike) -> list[dict]:
    """Read conversations from a JSONL file.

    A line is an object with `messages` (a list of `{"role", "content"}`) or with `turns` (a list of user turns, as in
    evaluation sets). An optional `complete: false` says that the last answer was cut off by a length limit, and an
    optional `thinking` whether the chat template had `enable_thinking` on.

    Args:
        path (`str` or `os.PathLike`): The file. Empty lines are skipped.

    Returns:
        `list[dict]`: One `{"messages": list[dict], "complete": bool}` per line, with `thinking` where the line has it;
        `turns` become user messages.

    Raises:
        `ValueError`: If the file is absent or empty, or a line is not such an object; the message has its number.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.readlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read conversations from {os.fspath(path)!r}: {error}. Give a JSONL file.") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                records.append(_parse_record(line))
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from error
    if not records:
        raise ValueError(f"{os.fspath(path)} holds no conversations. Give a JSONL file with one object a line.")
    return records


def check_messages(messages: Sequence[dict]) -> None:
    """Raise `ValueError` unless `messages` is a non-empty list of `{"role", "content"}` with known roles."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"Expected a non-empty list of messages, got {messages!r:.80}.")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"Expected each message to be {{'role': ..., 'content': text}}, got {message!r:.80}.")
        if message.get("role") not in _ROLES:
            raise ValueError(f"Expected a role out of {_ROLES}, got {message.get('role')!r}.")


def prompt_ids(
    tokenizer, conversation: str | Sequence[str] | Sequence[dict], *, thinking: bool | None = None
) -> list[int]:
    """Tokenize a prompt up to the point where the target starts to answer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        conversation (`str`, `list[str]` or `list[dict]`): One user turn, or several, or messages. A tokenizer without
            a chat template takes the single turn as raw text.
        thinking (`bool`, *optional*): `enable_thinking` of the chat template; the template's own choice, if not given.

    Returns:
        `list[int]`: Token ids, ending with the template's opening of an assistant turn.

    Raises:
        `ValueError`: If there is no chat template and the conversation has more than one turn.
    """
    messages = _as_messages(conversation)
    check_messages(messages)
    if tokenizer.chat_template is None:
        if len(messages) > 1:
            raise ValueError(f"{_no_template(tokenizer)} Without one, only a single turn can be taken as raw text.")
        return tokenizer(messages[0]["content"])["input_ids"]
    text = _render(tokenizer, messages, add_generation_prompt=True, **_template_options(thinking))
    return _tokenize(tokenizer, text)["input_ids"]


def encode_conversation(
    tokenizer,
    messages: Sequence[dict],
    max_length: int | None = None,
    *,
    complete: bool = True,
    thinking: bool | None = None,
) -> dict[str, list]:
    """Tokenize a conversation and mark the tokens that the target produces: each answer and its end-of-turn token.

    The mask comes from the chat template's `{% generation %}` blocks where it has them. Otherwise each assistant turn
    is located by rendering the conversation up to its opening and up to its end.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer, with a chat template.
        messages (`list[dict]`): `{"role", "content"}` messages.
        max_length (`int`, *optional*): Keep at most this many tokens, from the start.
        complete (`bool`, *optional*, defaults to `True`): `False` if the last answer was cut off: its end-of-turn
            token then stands where the target would have gone on, and is not marked.
        thinking (`bool`, *optional*): `enable_thinking` of the chat template, as when the answers were made.

    Returns:
        `dict`: `input_ids` (`list[int]`) and `loss_mask` (`list[bool]`, `True` = written by the assistant), equally
        long.

    Raises:
        `ValueError`: If the tokenizer has no chat template, or the template renders the beginning of a conversation
            differently once more turns follow, so that turns cannot be located.
    """
    check_messages(messages)
    if tokenizer.chat_template is None:
        raise ValueError(_no_template(tokenizer))
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}. Leave it out for no limit.")
    if _GENERATION_TAG.search(tokenizer.get_chat_template()):
        encoded = tokenizer.apply_chat_template(
            list(messages),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **_template_options(thinking),
        )
        input_ids, loss_mask = encoded["input_ids"], [bool(keep) for keep in encoded["assistant_masks"]]
    else:
        input_ids, loss_mask = _encode_by_prefixes(tokenizer, messages, _template_options(thinking))
    if not complete and messages[-1]["role"] == "assistant":
        _unmark_end_of_turn(tokenizer, input_ids, loss_mask)
    return {"input_ids": input_ids[:max_length], "loss_mask": loss_mask[:max_length]}


def encode_row(row: Mapping[str, Any], tokenizer=None, max_length: int | None = None) -> dict[str, Any]:
    """A data set's row as ids and mask: a conversation is encoded, ids and mask are cut to `max_length`.

    Args:
        row (`Mapping`): `messages`, perhaps with `complete` and `thinking`; or `input_ids` and `loss_mask`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Needed for conversations.
        max_length (`int`, *optional*): Keep at most this many tokens, from the start.

    Returns:
        `dict`: `input_ids` and `loss_mask`.

    Raises:
        `ValueError`: If the row has neither, or is a conversation and there is no tokenizer.
    """
    if "messages" in row:
        if tokenizer is None:
            raise ValueError(
                "The dataset holds conversations; give their tokenizer too (a trainer's processing_class)."
            )
        # The end of an answer that was cut off is not the target's.
        complete = row.get("complete") is not False
        thinking = row.get("thinking")
        return encode_conversation(
            tokenizer, row["messages"], max_length=max_length, complete=complete, thinking=thinking
        )
    if "input_ids" not in row or "loss_mask" not in row:
        raise ValueError(f"Expected a row with 'messages', or with 'input_ids' and 'loss_mask', got {sorted(row)}.")
    return {name: row[name][:max_length] for name in ("input_ids", "loss_mask")}


def _encode_by_prefixes(tokenizer, messages: Sequence[dict], options: dict[str, bool]) -> tuple[list[int], list[bool]]:
    """Mark the text between `messages[:i]` with the assistant's opening, and `messages[:i + 1]`."""
    text = _render(tokenizer, messages, **options)
    encoded = _tokenize(tokenizer, text, return_offsets_mapping=True)
    input_ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    loss_mask = [False] * len(input_ids)
    special_ids = set(tokenizer.all_special_ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if i == 0:
            raise ValueError("The conversation starts with an assistant message. Put a user message before it.")
        opening = _render(tokenizer, messages[:i], add_generation_prompt=True, **options)
        turn = _render(tokenizer, messages[: i + 1], **options)
        if not turn.startswith(opening) or not text.startswith(turn):
            raise ValueError(
                f"The chat template of {tokenizer.name_or_path!r} is not prefix-stable: message {i} is rendered "
                "differently when more turns follow or when it is generated, so its tokens cannot be located. Use a "
                "template with {% generation %} blocks, or train on single-turn conversations."
            )
        span = [j for j, (start, end) in enumerate(offsets) if len(opening) <= start < end <= len(turn)]
        # The template may add a line break after the end-of-turn token; the target never writes that.
        last_special = max((j for j in span if input_ids[j] in special_ids), default=None)
        for j in span:
            loss_mask[j] = last_special is None or j <= last_special
    return input_ids, loss_mask


def _unmark_end_of_turn(tokenizer, input_ids: list[int], loss_mask: list[bool]) -> None:
    """Take the mark from the last marked special token and from what follows it."""
    special_ids = set(tokenizer.all_special_ids)
    last = max((j for j, keep in enumerate(loss_mask) if keep and input_ids[j] in special_ids), default=len(input_ids))
    loss_mask[last:] = [False] * (len(loss_mask) - last)


def _render(tokenizer, messages: Sequence[dict], add_generation_prompt: bool = False, **options: bool) -> str:
    return tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **options
    )


def _template_options(thinking: bool | None) -> dict[str, bool]:
    return {} if thinking is None else {"enable_thinking": thinking}


def _tokenize(tokenizer, text: str, return_offsets_mapping: bool = False) -> dict:
    """Tokenize rendered text; the template has already put the special tokens in."""
    if return_offsets_mapping and not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} cannot tell which text a token came from. Use a fast tokenizer, or a chat "
            "template with {% generation %} blocks."
        )
    extra = {"return_offsets_mapping": True} if return_offsets_mapping else {}
    return tokenizer(text, add_special_tokens=False, **extra)


def _as_messages(conversation: str | Sequence[str] | Sequence[dict]) -> list[dict]:
    turns = [conversation] if isinstance(conversation, str) else conversation
    if not isinstance(turns, (list, tuple)):
        raise ValueError(f"Expected text, a list of turns or a list of messages, got {type(turns).__name__}.")
    return [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in turns]


def _parse_record(line: str) -> dict:
    record = json.loads(line)
    if not isinstance(record, dict) or not ({"messages", "turns"} & set(record)):
        raise ValueError(f"Expected an object with 'messages' or 'turns', got {line.strip()!r:.80}.")
    messages = record["messages"] if "messages" in record else _as_messages(record["turns"])
    check_messages(messages)
    complete = record.get("complete", True)
    if not isinstance(complete, bool):
        raise ValueError(f"Expected 'complete' to be true or false, got {complete!r}.")
    thinking = record.get("thinking")
    if thinking is not None and not isinstance(thinking, bool):
        raise ValueError(f"Expected 'thinking' to be true, false or absent, got {thinking!r}.")
    return {"messages": messages, "complete": complete, **({} if thinking is None else {"thinking": thinking})}


def _no_template(tokenizer) -> str:
    return (
        f"The tokenizer of {tokenizer.name_or_path!r} has no chat template. Use an instruction-tuned target, or set "
        "`tokenizer.chat_template` to the template that the target was trained with."
    )
