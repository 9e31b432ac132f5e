"""Conversations as token ids: which tokens the target wrote (and a drafter should learn), and how a prompt ends."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from dspark_hf.data.conversations import as_messages, call_names, check_messages
from dspark_hf.data.encoding_file import encoding_file, has_chat_form
from dspark_hf.messages import shown

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_MARK = "\u2402answer\u2403"


def prompt_ids(
    tokenizer,
    conversation: str | Sequence[str] | Sequence[dict],
    *,
    thinking: bool | None = None,
    reasoning_effort: str | None = None,
) -> list[int]:
    """Tokenize a prompt up to the point where the target starts to answer.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        conversation (`str`, `list[str]` or `list[dict]`): One user turn, or several, or messages. A tokenizer without
            a chat template takes the single turn as raw text.
        thinking (`bool`, *optional*): `enable_thinking` of the chat template; the template's own choice, if not given.
            An encoding file ([`~data.encoding_file.EncodingFile`]) does not think then.
        reasoning_effort (`str`, *optional*): `reasoning_effort` of the chat template or the encoding file.

    Returns:
        `list[int]`: Token ids, ending with the template's opening of an assistant turn.

    Raises:
        `ValueError`: If the chat template refuses the conversation, there is none and the conversation has several
            turns, or there are no tokens.
    """
    messages = as_messages(conversation)
    check_messages(messages)
    if not has_chat_form(tokenizer):
        if len(messages) > 1:
            raise ValueError(f"{_no_template(tokenizer)} Without one, only a single turn can be taken as raw text.")
        ids = tokenizer(messages[0]["content"])["input_ids"]
    else:
        options = _template_options(thinking, reasoning_effort)
        text = render(tokenizer, messages, add_generation_prompt=True, **options)
        ids = _tokenize(tokenizer, text)["input_ids"]
    if not ids:
        raise ValueError(f"The prompt {shown(conversation)} encodes to no tokens. Leave it out of the data.")
    return ids


def encode_conversation(
    tokenizer,
    messages: Sequence[dict],
    max_length: int | None = None,
    *,
    complete: bool = True,
    thinking: bool | None = None,
    reasoning_effort: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    answer_ids: Sequence[int] | None = None,
) -> dict[str, list]:
    """Tokenize a conversation and mark the tokens that the target produces: each answer and its end-of-turn token.

    The mask comes from the chat template's `{% generation %}` blocks where it has them. Otherwise, and with a file in
    its place ([`~data.encoding_file.EncodingFile`]), each assistant turn is located by rendering the conversation up
    to its opening and up to its end. Where a template shows earlier answers otherwise than the last one, such as
    without their thoughts, what it shows of them is marked. The last answer is taken word by word where it was cut
    off, or where the template would change it (close a thought, strip white space): the target wrote what stands in
    its `content`, right behind the opening.

    Without a chat template, which base models do not have, a conversation is a prompt and an answer, and their text is
    taken raw, as [`prompt_ids`] does; behind it stands the tokenizer's end of text.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        messages (`list[dict]`): `{"role", "content"}` messages.
        max_length (`int`, *optional*): Keep at most this many tokens, from the start.
        complete (`bool`, *optional*, defaults to `True`): `False` if the last answer was cut off: the target would
            have gone on where it ends.
        thinking (`bool`, *optional*): `enable_thinking` of the chat template, as when the answers were made. An
            encoding file thinks, if not given, where the last answer has thoughts.
        reasoning_effort (`str`, *optional*): `reasoning_effort` of the chat template or the encoding file, likewise.
        tools (`list[dict]`, *optional*): Functions that the chat template shows.
        answer_ids (`list[int]`, *optional*): Of a raw answer, its end included, as the target made them.

    Returns:
        `dict`: `input_ids` (`list[int]`) and `loss_mask` (`list[bool]`, `True` = written by the assistant), equally
        long.

    Raises:
        `ValueError`: If the template refuses the conversation, leaves tool calls or the last thoughts out, or renders
            it so that turns cannot be located; or if there is none and the conversation is not a prompt and an answer.
    """
    check_messages(messages)
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}. Leave it out for no limit.")
    if not has_chat_form(tokenizer):
        input_ids, loss_mask = _encode_raw(tokenizer, messages, complete, answer_ids)
        return {"input_ids": input_ids[:max_length], "loss_mask": loss_mask[:max_length]}
    if thinking is None and encoding_file(tokenizer) is not None and messages[-1].get("reasoning_content"):
        thinking = True
    options = _template_options(thinking, reasoning_effort) | ({"tools": list(tools)} if tools else {})
    _check_shown(tokenizer, messages, options)
    written = _written(tokenizer, messages, complete, options)
    if written is None:
        input_ids, loss_mask = _encode(tokenizer, messages, options)
        if not complete and messages[-1]["role"] == "assistant":
            _unmark_end_of_turn(tokenizer, input_ids, loss_mask)
    else:
        input_ids, loss_mask = _encode(tokenizer, messages[:-1], options | {"add_generation_prompt": True})
        opening = render(tokenizer, messages[:-1], **options | {"add_generation_prompt": True})
        answer_ids = _continued(tokenizer, input_ids, opening, written)
        input_ids, loss_mask = input_ids + answer_ids, loss_mask + [True] * len(answer_ids)
    return {"input_ids": input_ids[:max_length], "loss_mask": loss_mask[:max_length]}


def _encode_raw(
    tokenizer, messages: Sequence[dict], complete: bool, answer_ids: Sequence[int] | None
) -> tuple[list[int], list[bool]]:
    """Ids and mask of a prompt and its answer without a template."""
    if [message["role"] for message in messages] not in (["user"], ["user", "assistant"]):
        raise ValueError(
            f"{_no_template(tokenizer)} Without one, a prompt and its answer can be taken as raw text, and no more."
        )
    if names := call_names(messages):
        raise ValueError(f"{_no_template(tokenizer)} Without one, the call of {shown(names[0])} has no text.")
    question, *answers = (message["content"] or "" for message in messages)
    input_ids = tokenizer(question)["input_ids"]
    if answer_ids is None:
        answer_ids = _continued(tokenizer, input_ids, question, answers[0], add_special_tokens=True) if answers else []
        has_end = complete and bool(answers) and tokenizer.eos_token_id is not None
        answer_ids = answer_ids + [tokenizer.eos_token_id] * has_end
    elif max(answer_ids) >= len(tokenizer):
        raise ValueError(f"answer_ids has {max(answer_ids)}, and the tokenizer ends at {len(tokenizer) - 1}.")
    return input_ids + list(answer_ids), [False] * len(input_ids) + [True] * len(answer_ids)


def _continued(tokenizer, input_ids: list[int], opening: str, written: str, add_special_tokens: bool = False):
    """The ids of text that was written behind an opening of these ids."""
    whole = tokenizer(opening + written, add_special_tokens=add_special_tokens)["input_ids"]
    # Where a tokenizer would join text across the border, the target still wrote from the border on.
    is_joined = whole[: len(input_ids)] != input_ids
    return _tokenize(tokenizer, written)["input_ids"] if is_joined else whole[len(input_ids) :]


def _check_shown(tokenizer, messages: Sequence[dict], options: dict[str, Any]) -> None:
    """Raise `ValueError` if the template leaves out what the target wrote beside its text."""
    names, thoughts = call_names(messages), messages[-1].get("reasoning_content")
    if not names and not thoughts:
        return
    text = render(tokenizer, messages, **options)
    missing = "the last answer's thoughts" if thoughts and str(thoughts).strip() not in text else ""
    missing = next((f"a call of {shown(name)}" for name in names if name not in text), missing)
    if missing:
        raise ValueError(f"The chat template of {tokenizer.name_or_path!r} leaves out {missing}, which was written.")


def _written(tokenizer, messages: Sequence[dict], complete: bool, options: dict[str, Any]) -> str | None:
    """The last answer's text, if it must be taken word by word: with its end-of-turn token, unless it was cut off."""
    last = messages[-1]
    if last["role"] != "assistant" or len(messages) == 1 or last.keys() - {"role", "content"}:
        return None  # what stands beside the content, such as thoughts, only the template can put in its place
    if not complete:
        return last["content"]
    turn = render(tokenizer, messages, **options)
    opening = render(tokenizer, messages[:-1], **options | {"add_generation_prompt": True})
    if not turn.startswith(opening):
        return None
    if last["content"] in turn[len(opening) :]:
        before = turn[len(opening) :].split(last["content"])[0].strip() if last["content"] else ""
        # What the template puts before an answer that has it already, such as the end of thoughts, was written once.
        if not before or before not in last["content"]:
            return None
    marked = render(tokenizer, [*messages[:-1], {**last, "content": _MARK}], **options)
    after = marked.partition(_MARK)[2]
    return last["content"] + (_end_of_turn(tokenizer, after) or after) if marked.count(_MARK) == 1 else None


def _encode(tokenizer, messages: Sequence[dict], options: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """Ids and mask of a conversation as the template shows it."""
    if encoding_file(tokenizer) is not None or not _GENERATION_TAG.search(tokenizer.get_chat_template()):
        return _encode_by_prefixes(tokenizer, messages, options)
    encoded = _apply_template(
        tokenizer, messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **options
    )
    return encoded["input_ids"], [bool(keep) for keep in encoded["assistant_masks"]]


def _encode_by_prefixes(tokenizer, messages: Sequence[dict], options: dict[str, Any]) -> tuple[list[int], list[bool]]:
    """Mark the tokens of each answer's text."""
    text = render(tokenizer, messages, **options)
    encoded = _tokenize(tokenizer, text, return_offsets_mapping=True)
    input_ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    loss_mask = [False] * len(input_ids)
    special_ids = set(tokenizer.all_special_ids)
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if i == 0:
            raise ValueError("The conversation starts with an assistant message. Put a user message before it.")
        first, last = _find_answer(tokenizer, messages, i, text, options)
        span = [j for j, (start, end) in enumerate(offsets) if first <= start < end <= last]
        # The template may add a line break after the end-of-turn token; the target never writes that.
        last_special = max((j for j in span if input_ids[j] in special_ids), default=None)
        for j in span:
            loss_mask[j] = last_special is None or j <= last_special
    return input_ids, loss_mask


def _find_answer(tokenizer, messages: Sequence[dict], i: int, text: str, options: dict[str, Any]) -> tuple[int, int]:
    """Where the turn of message `i` stands in the rendered conversation, from behind its opening."""
    opening = render(tokenizer, messages[:i], **options | {"add_generation_prompt": True})
    turn = render(tokenizer, messages[: i + 1], **options | {"add_generation_prompt": False})
    if turn.startswith(opening) and text.startswith(turn):
        return len(opening), len(turn)
    if i < len(messages) - 1:
        # What another text in its place leaves as it is, is not the answer's.
        others = [*messages[:i], {**messages[i], "content": _MARK}, *messages[i + 1 :]]
        marked = render(tokenizer, others, **options)
        after = marked.partition(_MARK)[2]
        if marked.count(_MARK) == 1 and text.endswith(after):
            last = len(text) - len(after)
            return len(os.path.commonprefix((text, marked))), last + len(_end_of_turn(tokenizer, text[last:]))
    raise ValueError(
        f"The chat template of {tokenizer.name_or_path!r} is not prefix-stable: message {i} is rendered otherwise "
        "than it is generated (with another opening, say, or without its thoughts), so its tokens cannot be located. "
        "Set `tokenizer.chat_template` to one that shows answers as they were generated, or that has {% generation %} "
        "blocks."
    )


def _end_of_turn(tokenizer, after: str) -> str:
    """The special token that what comes after an answer starts with, or nothing."""
    return next((token for token in tokenizer.all_special_tokens if after.startswith(token)), "")


def _unmark_end_of_turn(tokenizer, input_ids: list[int], loss_mask: list[bool]) -> None:
    """Take the mark from the last marked special token and from what follows it."""
    special_ids = set(tokenizer.all_special_ids)
    last = max((j for j, keep in enumerate(loss_mask) if keep and input_ids[j] in special_ids), default=len(input_ids))
    loss_mask[last:] = [False] * (len(loss_mask) - last)


def render(tokenizer, messages: Sequence[dict], add_generation_prompt: bool = False, **options: Any) -> str:
    """The text of a conversation, by the tokenizer's chat template or its encoding file.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        messages (`list[dict]`): Messages.
        add_generation_prompt (`bool`, *optional*, defaults to `False`): Whether the opening of an answer stands at the
            end; an encoding file opens one behind whatever is no answer.
        options: For the template; `enable_thinking`, `reasoning_effort` and `tools` for the file too.

    Raises:
        `ValueError`: If the conversation is refused.
    """
    if (file := encoding_file(tokenizer)) is not None:
        return file.render(messages, thinking=options.pop("enable_thinking", None), **options)
    return _apply_template(tokenizer, messages, tokenize=False, add_generation_prompt=add_generation_prompt, **options)


def _apply_template(tokenizer, messages: Sequence[dict], **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    # Templates put texts together, and one that knows no tool calls has no text there.
    except (TemplateError, TypeError) as error:
        roles = [message["role"] for message in messages]
        raise ValueError(
            f"The chat template of {tokenizer.name_or_path!r} refuses a conversation of roles {roles}: {error} Leave "
            "such conversations out, or change their roles."
        ) from error


def _template_options(thinking: bool | None, reasoning_effort: str | None) -> dict[str, Any]:
    options = {"enable_thinking": thinking, "reasoning_effort": reasoning_effort}
    return {name: value for name, value in options.items() if value is not None}


def _tokenize(tokenizer, text: str, return_offsets_mapping: bool = False) -> dict:
    """Tokenize rendered text; the template has already put the special tokens in."""
    if return_offsets_mapping and not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} cannot tell which text a token came from. Use a fast tokenizer, or a chat "
            "template with {% generation %} blocks."
        )
    extra = {"return_offsets_mapping": True} if return_offsets_mapping else {}
    return tokenizer(text, add_special_tokens=False, **extra)


def _no_template(tokenizer) -> str:
    name, told = str(tokenizer.name_or_path or ""), ""
    # Into a folder it was looked; of a repository there is only what was asked for.
    if name and not os.path.isdir(name):
        told = (
            " Where a repository renders chats by code of its own (encoding/encoding_*.py), AutoTokenizer does not "
            f"fetch it: load it with dspark_hf.data.encoding_file.load_tokenizer({name!r}, trust_remote_code=True)."
        )
    return (
        f"The tokenizer of {tokenizer.name_or_path!r} has no chat template; set `tokenizer.chat_template` if the "
        f"target was trained with one.{told}"
    )
