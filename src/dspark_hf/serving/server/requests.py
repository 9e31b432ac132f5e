"""What a request's body may hold: told with a 4xx before anything is generated."""

import math
from typing import Any

from dspark_hf.messages import shown

# Fields of OpenAI's interface that the server does not know what to do with, and the values that ask for nothing.
_UNKNOWN = {
    "audio": (None,),
    "function_call": (None, "auto", "none"),
    "functions": (None, []),
    "logprobs": (None, False),
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "auto"),
    "top_logprobs": (None, 0),
    "web_search_options": (None,),
}
# Of those that the server knows, the ones that batched requests cannot have.
_NOT_BATCHED = ("frequency_penalty", "logit_bias", "generation_config")
_MOST_STOPS = 16


def check_body(body: dict[str, Any], is_batched: bool) -> None:
    """Look whether a body asks for something that the server can do.

    Args:
        body (`dict`): Of `/v1/chat/completions` or `/v1/completions`.
        is_batched (`bool`): Whether requests are batched.

    Raises:
        `ValueError`: If it does not, with the field.
    """
    for name, unset in _UNKNOWN.items():
        if name in body and body[name] not in unset:
            raise ValueError(f"{name}={shown(body[name])} is not supported by this server: leave it out.")
    for name in _NOT_BATCHED if is_batched else ():
        if body.get(name) not in (None, 0, {}, []):
            raise ValueError(f"{name} is not supported by a server that batches requests (--cb): leave it out.")
    for name, least, most in (("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0), ("frequency_penalty", -2.0, 2.0)):
        value = body.get(name)
        if value is not None and not (_is_number(value) and least <= value <= most):
            raise ValueError(f"{name} must be a number from {least:g} to {most:g}, got {shown(value)}.")
    if body.get("top_p") == 0:
        raise ValueError("top_p must be above 0; temperature=0 takes the most likely tokens.")
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name)
        if value is not None and not (_is_int(value) and value >= 1):
            raise ValueError(f"{name} must be a positive whole number, got {shown(value)}.")
    if body.get("seed") is not None and not (_is_int(body["seed"]) and abs(body["seed"]) < 2**63):
        raise ValueError(f"seed must be a whole number, got {shown(body['seed'])}.")
    if body.get("stream") not in (None, True, False):
        raise ValueError(f"stream must be true or false, got {shown(body['stream'])}.")
    if not (body.get("model") is None or isinstance(body["model"], str)):
        raise ValueError(f"model must be a string, got {shown(body['model'])}.")
    _check_stop(body.get("stop"))
    _check_bias(body.get("logit_bias"))


def check_messages(body: dict[str, Any]) -> None:
    """Look whether the messages of a chat are messages, and its tools are tools.

    Args:
        body (`dict`): Of `/v1/chat/completions`.

    Raises:
        `ValueError`: If not, with the place.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of at least one message.")
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"{where} must be an object with a role, got {shown(message)}.")
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):
            if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
                       for part in content):  # fmt: skip
                raise ValueError(f"{where}.content must be text, or parts of the type text, got {shown(content)}.")
        elif not isinstance(content, str) and not calls:
            raise ValueError(f"{where}.content must be text, got {shown(content)}.")
        if calls and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
            raise ValueError(f"{where}.tool_calls must be a list of objects, got {shown(calls)}.")
    tools = body.get("tools")
    if not (tools is None or (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools))):
        raise ValueError(f"tools must be a list of objects, got {shown(tools)}.")
    options = body.get("chat_template_kwargs")
    if not (options is None or isinstance(options, dict)):
        raise ValueError(f"chat_template_kwargs must be an object, got {shown(options)}.")


def check_prompt(body: dict[str, Any]) -> None:
    """Look whether the prompt of a completion is text.

    Args:
        body (`dict`): Of `/v1/completions`.

    Raises:
        `ValueError`: If it is not.
    """
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise ValueError(f"prompt must be text, got {shown(prompt)}.")


def _check_stop(stop: Any) -> None:
    texts = [stop] if isinstance(stop, str) else stop
    if texts is None:
        return
    if not (isinstance(texts, list) and all(isinstance(text, str) and text for text in texts)):
        raise ValueError(f"stop must be a text, or a list of texts that are not empty, got {shown(stop)}.")
    if len(texts) > _MOST_STOPS:
        raise ValueError(f"stop must be at most {_MOST_STOPS} texts, got {len(texts)}.")


def _check_bias(bias: Any) -> None:
    if bias is None:
        return
    is_bias = isinstance(bias, dict) and all(
        str(token).isascii() and str(token).isdigit() and _is_number(value) for token, value in bias.items()
    )
    if not is_bias:
        raise ValueError(f"logit_bias must give numbers to token ids, got {shown(bias)}.")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # JSON has whole numbers that no float can be.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
