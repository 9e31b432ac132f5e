"""Options of a chat template are taken where the template knows them: what is told and recorded of a run is true."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from dspark_hf.data.chat import render
from dspark_hf.data.encoding_file import has_chat_form
from dspark_hf.messages import shown

_QUESTION = [{"role": "user", "content": "Hello."}]
# Words that templates know, not all of them the same, and one that is no template's own choice.
_EFFORTS = ("low", "medium", "high", "max", "none", "\u2402")


def check_template_options(tokenizer: Any, thinking: bool | None = None, reasoning_effort: str | None = None) -> None:
    """Refuse options that make no difference to a prompt.

    One that is the template's own choice is no such: the prompt is compared with what other values make of it, too.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        thinking, reasoning_effort (*optional*): As of [`~data.chat.prompt_ids`].

    Raises:
        `ValueError`: If the template makes the same prompt with and without one, or there is none.
    """
    given = {} if thinking is None else {"enable_thinking": thinking}
    if thinking is not None:
        option = "--thinking" if thinking else "--no-thinking"
        _check(tokenizer, option, {}, "enable_thinking", thinking, [not thinking])
    if reasoning_effort is not None:
        option = f"--reasoning-effort {shown(reasoning_effort)}"
        _check(tokenizer, option, given, "reasoning_effort", reasoning_effort, _EFFORTS)


def _check(tokenizer: Any, option: str, others: dict[str, Any], name: str, value: Any, further: Sequence) -> None:
    where = repr(str(tokenizer.name_or_path))
    if not has_chat_form(tokenizer):
        raise ValueError(f"The tokenizer of {where} has no chat template that {option} could be for. Leave it out.")
    with_it = _prompt(tokenizer, others | {name: value})
    prompts = [_prompt(tokenizer, others)]
    for one in further:
        # Templates refuse words that they do not know.
        with suppress(ValueError):
            prompts.append(_prompt(tokenizer, others | {name: one}))
    if all(prompt == with_it for prompt in prompts):
        is_of_thoughts = name == "reasoning_effort" and not others.get("enable_thinking")
        hint = ", add --thinking where the template knows it of thoughts alone," if is_of_thoughts else ""
        raise ValueError(
            f"The chat template of {where} makes the same prompt with and without {option}, so that a run would say "
            f"what is not true. Leave it out{hint} or name a target whose template knows {name}."
        )


def _prompt(tokenizer: Any, options: dict[str, Any]) -> str:
    return render(tokenizer, _QUESTION, add_generation_prompt=True, **options)
