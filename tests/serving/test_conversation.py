"""Turns over one cache say what a fresh `generate()` over the whole text says, and process only what is new."""

import pytest
import torch
from fake_drafters import TableDrafter
from tiny_targets import FAMILIES, make_target

from dspark_hf.serving.conversation import Conversation


def decode(ids):
    return " ".join(map(str, ids))


def encode(messages):
    """Three tokens for the role, then those of the text; 3 opens the answer."""
    ids = [1]
    for message in messages:
        ids += [2 if message["role"] == "user" else 3, *map(int, message["content"].split())]
    return [*ids, 3]


def encode_anew(messages):
    """Answers of earlier turns are cut short, as templates do that leave thinking out."""
    cut = [
        {**message, "content": " ".join(message["content"].split()[:4])} if message["role"] == "assistant" else message
        for message in messages
    ]
    return encode(cut)


def plain_answer(target, ids, **options):
    ids = torch.tensor([ids])
    return target.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("render", [encode, encode_anew])
@pytest.mark.parametrize("family", FAMILIES)
def test_turns_are_those_of_fresh_calls(family, render):
    target, drafter = make_target(family), TableDrafter(64)
    conversation = Conversation(target, drafter, render, decode)
    options = {"max_new_tokens": 12, "do_sample": False}
    for text in ("9 8 7", "20 21", "9 9 9 9 9 9 9"):
        ids = render([*conversation.messages, {"role": "user", "content": text}])
        assert conversation.say(text, **options) == decode(plain_answer(target, ids, **options))
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 3
    assert conversation.stats.new_tokens == 36


@pytest.mark.parametrize(("render", "num_processed"), [(encode, 4), (encode_anew, 4)])
def test_a_turn_processes_what_is_new(render, num_processed):
    target, drafter = make_target(), TableDrafter(64)
    conversation = Conversation(target, drafter, render, decode)
    options = {"max_new_tokens": 9, "do_sample": False}
    conversation.say("9 8 7", **options)
    widths = []
    hook = target.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    conversation.say("20", **options)
    hook.remove()
    # The answer's last token, or none of those that the template left out; the role, the text, and the opening.
    assert widths[0] <= num_processed


def test_forgetting_and_breaking_off():
    class BrokenOff(Exception):
        pass

    class Streamer:
        def __init__(self, num_tokens):
            self.num_left = num_tokens

        def put(self, ids):
            self.num_left -= 1
            if self.num_left < 0:
                raise BrokenOff

        def end(self):
            pass

    target, options = make_target(), {"max_new_tokens": 12, "do_sample": False}
    conversation = Conversation(target, TableDrafter(64), encode, decode, system="5 5")
    first = conversation.say("9 8", **options)
    with pytest.raises(BrokenOff):
        conversation.say("20 21", streamer=Streamer(4), **options)
    assert len(conversation.messages) == 3
    ids = encode([*conversation.messages, {"role": "user", "content": "20 21"}])
    assert conversation.say("20 21", **options) == decode(plain_answer(target, ids, **options))
    conversation.forget()
    assert conversation.messages == [{"role": "system", "content": "5 5"}] and conversation.stats.rounds == 0
    assert conversation.say("9 8", **options) == first
