"""Answers of batched requests end with the token that completes a stop text, and clients do not get that text."""

import copy
import random

import pytest
import torch
from knowing import knowing_drafter, plain_answer, small_batching
from test_batching import ALL_SLOTS
from transformers import AutoModelForCausalLM

from dspark_hf.serving.stop_texts import StopTexts, TextCutter, cut_at


@pytest.fixture(scope="module")
def given(tiny_target_dir, tiny_tokenizer):
    """A target whose tokens are bytes, its tokenizer, and prompts with their answers."""
    target, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_target_dir), tiny_tokenizer
    target.generation_config.eos_token_id = None
    prompts = [tokenizer(text).input_ids for text in ("Once", "upon a time", "there was", "a b c")]
    return target, tokenizer, [(prompt, plain_answer(target, prompt, 40)) for prompt in prompts]


def generated(target, tokenizer, prompt, stop):
    """What plain generate() makes."""
    ids = torch.tensor([prompt])
    out = target.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, stop_strings=stop,
        tokenizer=tokenizer,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def stops_in(tokenizer, answer, rng):
    """A text of an answer that can be told in it, and one that does not occur."""
    text = tokenizer.decode(answer)
    places = [place for place in range(3, len(text) - 3) if text[place : place + 2].isascii()]
    place = rng.choice(places)
    return [text[place : place + 2], "\N{SNOWMAN}"]


def test_half_a_pair_of_surrogates_occurs_nowhere(given):
    _, tokenizer, requests = given
    prompt, _ = requests[0]
    assert StopTexts(tokenizer).num_until(["\ud800"], [], prompt) is None
    assert StopTexts(tokenizer).num_until(["\ud800", "n"], [], tokenizer("Once").input_ids) == 2


@pytest.mark.parametrize("num_blocks", [96, 14])
def test_answers_end_as_those_of_generate(given, num_blocks):
    """With a cache so small that requests begin anew, too."""
    target, tokenizer, requests = given
    rng, asked = random.Random(0), {}
    for number, (prompt, answer) in enumerate(requests * 3):
        stop = stops_in(tokenizer, answer, rng)
        asked[f"r{number}"] = prompt, stop, generated(target, tokenizer, prompt, stop)
    drafter = knowing_drafter(target, [prompt + answer for prompt, answer in requests])
    config = copy.deepcopy(target.generation_config)
    config.update(do_sample=False, eos_token_id=-1)
    manager = target.init_continuous_batching(
        config, small_batching(num_blocks=num_blocks), assistant_model=drafter, speculation=ALL_SLOTS,
        tokenizer=tokenizer,
    )  # fmt: skip
    manager.start()
    for name, (prompt, stop, _) in asked.items():
        manager.add_request(prompt, name, max_new_tokens=40, stop_strings=stop)
    results = {}
    while len(results) < len(asked):
        out = manager.get_result(timeout=20)
        results[out.request_id] = out.generated_tokens
    manager.stop(block=True, timeout=10)
    expected = {name: answer for name, (_, _, answer) in asked.items()}
    assert results == expected and any(len(answer) < 40 for answer in expected.values())
    assert manager.stats.tau > 1.5


def test_all_requests_of_a_batch_may_have_stops(given):
    target, tokenizer, requests = given
    stop = stops_in(tokenizer, requests[0][1], random.Random(1))
    config = copy.deepcopy(target.generation_config)
    config.update(do_sample=False, eos_token_id=-1, stop_strings=stop, max_new_tokens=40)
    out = target.generate_batch(
        [prompt for prompt, _ in requests], config, small_batching(), assistant_model=knowing_drafter(target),
        tokenizer=tokenizer,
    )  # fmt: skip
    made = [one.generated_tokens for one in out.values()]
    assert made == [generated(target, tokenizer, prompt, stop) for prompt, _ in requests]


def test_special_tokens_count_as_they_are_spelt(given):
    _, tokenizer, _ = given
    finder = StopTexts(tokenizer)
    ids = tokenizer("one two").input_ids
    assert finder.num_until(["<eos>"], ids, [*ids, tokenizer.eos_token_id, 5]) == len(ids) + 1
    # A text that begins before, and one of several bytes a character.
    assert finder.num_until(["one two t"], ids, tokenizer(" two").input_ids) == 2
    assert finder.num_until(["\N{SNOWMAN}!"], ids, tokenizer("\N{SNOWMAN}!!").input_ids) == 4
    assert finder.num_until(["three"], ids, ids) is None


def test_pieces_are_cut_as_the_whole_is():
    rng = random.Random(0)
    for _ in range(300):
        stops = ["".join(rng.choices("ab", k=rng.randint(1, 4))) for _ in range(rng.randint(1, 2))]
        answer = "".join(rng.choices("abc", k=20))
        cutter, shown, at = TextCutter(stops), "", 0
        while at < len(answer):
            size = rng.randint(1, 4)
            shown += cutter.feed(answer[at : at + size])
            # Nothing is shown that has to be taken back.
            assert answer.startswith(shown) and not any(stop in shown for stop in stops)
            at += size
        shown += cutter.rest()
        # The one that is complete first ends the answer.
        ends = [answer.find(stop) + len(stop) for stop in stops if stop in answer]
        within = answer if not ends else answer[: min(ends)]
        assert shown.startswith(cut_at(stops, answer)) and within.startswith(shown)
        if len(stops) == 1:
            assert shown == cut_at(stops, answer)
