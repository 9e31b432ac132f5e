"""Files that render chats as DeepSeek-V4's does, of both published kinds, and a tokenizer for them."""

import copy

# The earlier kind knows None, high and max, and shows max alone; the later one low, high and max, and shows two.
EARLIER = {None: "", "high": "", "max": "Think a lot. "}
LATER = {None: "", "low": "", "high": "Think. ", "max": "Think a lot. "}

_SOURCE = """
EFFORTS = {efforts}


def encode_messages(messages, thinking_mode, context=None, drop_thinking=True, add_default_bos_token=True,
                    reasoning_effort=None):
    assert thinking_mode in ("chat", "thinking")
    assert reasoning_effort in EFFORTS, f"unknown effort {{reasoning_effort}}"
    thinks = thinking_mode == "thinking"
    last_user = max(i for i, message in enumerate(messages) if message["role"] in ("user", "tool"))
    keeps = not drop_thinking or any(message.get("tools") for message in messages)
    text = "<bos>" + (EFFORTS[reasoning_effort] if thinks else "")
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            shown = thinks and (keeps or i > last_user)
            text += (message.get("reasoning_content") or "") + "</think>" if shown else ""
            text += message["content"] or ""
            for call in message.get("tool_calls") or ():
                text += "<call>" + call["function"]["name"] + call["function"]["arguments"] + "</call>"
            text += "<eos>"
        elif message["role"] == "system":
            text += message["content"] + "".join(tool["function"]["name"] for tool in message.get("tools") or ())
        else:
            result = message["role"] == "tool"
            text += "<user>" + (f"<result>{{message['content']}}</result>" if result else message["content"])
            text += "<assistant>" + ("<think>" if thinks and (keeps or i >= last_user) else "</think>")
    return text


def parse_message_from_completion_text(text, thinking_mode):
    thoughts, mark, content = text.partition("</think>")
    assert mark and content.endswith("<eos>")
    return {{"role": "assistant", "content": content[:-5], "reasoning_content": thoughts, "tool_calls": []}}
"""
SOURCE = _SOURCE.format(efforts=LATER)
EARLIER_SOURCE = _SOURCE.format(efforts=EARLIER)


def write_encoding(folder, source=SOURCE, name="encoding_dsv4.py"):
    """Put such a file into a repository's folder."""
    (folder / "encoding").mkdir(parents=True, exist_ok=True)
    (folder / "encoding" / name).write_text(source)
    return folder


def without_template(tiny_tokenizer, added=("<bos>", "<user>", "<assistant>")):
    """The tiny tokenizer with the tokens of such chats, and no template."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    tokenizer.chat_template = None
    return tokenizer


def by_hand(tokenizer, *pieces):
    """Ids and mask of pieces of text; those that the target wrote stand in lists of one."""
    ids, mask = [], []
    for piece in pieces:
        new = tokenizer(piece[0] if isinstance(piece, list) else piece, add_special_tokens=False)["input_ids"]
        ids, mask = ids + new, mask + [isinstance(piece, list)] * len(new)
    return {"input_ids": ids, "loss_mask": mask}
