"""Many requests at once say what each says alone, whatever comes between: others, cancels, a cache too small."""

import copy
import random
import time

import numpy as np
import pytest
import torch
from knowing import knowing_drafter, plain_answer, small_batching
from tiny_targets import FAMILIES, make_target
from transformers.generation.continuous_batching.requests import RequestState

from dspark_hf import PrefixScheduler, SpeculationConfig, StepCost, attach_drafter, detach_drafter
from dspark_hf.serving.batching.scheduling import DraftScheduling

# So few that requests are preempted: a window needs two of them, a whole text as many as it is long.
NUM_BLOCKS = {"llama": 26, "qwen3": 26, "mistral": 3, "gemma3_text": 14}
# Layers of both kinds in one model.
FIELDS = {"gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2}}
ALL_SLOTS = SpeculationConfig(policy="fixed")


def greedy_config(target, **options):
    config = copy.deepcopy(target.generation_config)
    config.update(do_sample=False, eos_token_id=-1, **options)
    return config


def make_requests(target, num_requests, seed=0, eos=None, most_new=40):
    """Prompts, some of which begin as others do, with the lengths and texts of their answers."""
    rng, requests = random.Random(seed), []
    stems = [[rng.randint(1, 63) for _ in range(20)] for _ in range(3)]
    for number in range(num_requests):
        prompt = [rng.randint(1, 63) for _ in range(rng.choice([1, 4, 11, 23, 50]))]
        prompt = rng.choice(stems) + prompt if number % 3 == 0 else prompt
        max_new_tokens = rng.randint(1, most_new)
        requests.append((prompt, max_new_tokens, plain_answer(target, prompt, max_new_tokens, eos)))
    return requests


def run_staggered(manager, requests, seed=0, share_cancelled=0.0, streaming=False):
    """Results of requests that come one after the other, some of which are cancelled under way."""
    rng, waiting, results = random.Random(seed), list(enumerate(requests)), {}
    cancelled, parts, deadline = set(), {}, time.monotonic() + 120
    manager.start()
    while len(results) < len(requests) - len(cancelled) and time.monotonic() < deadline:
        for _ in range(rng.randint(0, 3)):
            if waiting:
                number, (prompt, max_new_tokens, _) = waiting.pop(0)
                manager.add_request(prompt, f"r{number}", max_new_tokens=max_new_tokens, streaming=streaming)
                if rng.random() < share_cancelled:
                    cancelled.add(f"r{number}")
        out = manager.get_result(timeout=0.02)
        if out is not None and out.request_id not in cancelled:
            parts.setdefault(out.request_id, []).append(out.generated_tokens)
            if out.is_finished():
                results[out.request_id] = out
        for request_id in cancelled:
            if rng.random() < 0.3:
                manager.cancel_request(request_id)
    assert waiting == []
    return results, parts


def check_staggered(family, num_requests, monkeypatch, eos=5):
    target = make_target(family, **FIELDS.get(family, {}))
    requests = make_requests(target, num_requests, eos=eos)
    drafter = knowing_drafter(target, [prompt + answer for prompt, _, answer in requests])
    num_preempted, again = [0], RequestState.create_equivalent_initial_request

    def count(state):
        num_preempted[0] += 1
        return again(state)

    monkeypatch.setattr(RequestState, "create_equivalent_initial_request", count)
    config = greedy_config(target)
    config.eos_token_id = eos
    manager = target.init_continuous_batching(
        config, small_batching(num_blocks=NUM_BLOCKS[family]), assistant_model=drafter, speculation=ALL_SLOTS
    )
    try:
        results, _ = run_staggered(manager, requests, share_cancelled=0.15)
        processor = manager.batch_processor
    finally:
        manager.stop(block=True, timeout=10)
    wrong = {
        name: (out.generated_tokens, requests[int(name[1:])][2], out.error)
        for name, out in results.items()
        if out.error or out.generated_tokens != requests[int(name[1:])][2]
    }
    assert wrong == {} and len(results) >= 0.6 * num_requests
    assert all(results[name].prompt_ids == requests[int(name[1:])][0] for name in results)
    assert manager.stats.tau > 1.5 and manager.stats.failed_requests == 0
    # Nothing is kept of requests that are gone.
    assert processor.drafter.num_requests == 0
    return num_preempted[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_staggered_requests_say_what_they_say_alone(family, monkeypatch):
    assert check_staggered(family, 14, monkeypatch) > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_hundred_staggered_requests(family, monkeypatch):
    assert check_staggered(family, 200, monkeypatch) > 10


@pytest.mark.parametrize("policy", ["auto", "lagged", "early_stop", "threshold"])
@pytest.mark.cost
def test_policies_change_nothing(policy):
    target = make_target()
    requests = make_requests(target, 8)
    drafter = knowing_drafter(target, [prompt + answer for prompt, _, answer in requests])
    options = PrefixScheduler(policy, threshold=0.3 if policy == "threshold" else 0.0, probe_interval=4)
    out = target.generate_batch(
        [prompt for prompt, *_ in requests],
        greedy_config(target),
        small_batching(),
        assistant_model=drafter,
        speculation=SpeculationConfig(policy=options),
        max_new_tokens=30,
    )
    answers = [plain_answer(target, prompt, 30) for prompt, *_ in requests]
    assert [one.generated_tokens for one in out.values()] == answers
    assert drafter.last_stats.verified_tokens > 0


@pytest.mark.parametrize("num_requests", [1, 3])
def test_drafts_that_stand_go_on(num_requests):
    target, cost = make_target(), StepCost([1, 512], [1], [[1.0, 1.05]], [1], [0.1])
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]][:num_requests]
    answers = [plain_answer(target, prompt, 120) for prompt in prompts]
    drafter = knowing_drafter(target, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    settings = copy.deepcopy(target.generation_config)
    settings.update(do_sample=False, eos_token_id=-1, max_new_tokens=120)
    speculation = SpeculationConfig(policy=PrefixScheduler(step_cost=cost))
    out = target.generate_batch(
        prompts, settings, small_batching(num_blocks=400), assistant_model=drafter, speculation=speculation
    )
    assert [one.generated_tokens for one in out.values()] == answers
    assert drafter.last_stats.paused_rounds == 0 and drafter.last_stats.rounds < 60


def test_generate_batch_keeps_ids_and_order():
    target = make_target()
    requests = make_requests(target, 6)
    prompts = [prompt for prompt, *_ in requests]
    drafter = knowing_drafter(target)
    config = greedy_config(target, max_new_tokens=9)
    stock = target.generate_batch(prompts, config, small_batching())
    out = target.generate_batch(prompts, config, small_batching(), assistant_model=drafter, record_timestamps=True)
    assert list(out) == list(stock)
    assert [one.generated_tokens for one in out.values()] == [one.generated_tokens for one in stock.values()]
    assert all(len(one.timestamps) == 9 for one in out.values())
    assert drafter.last_stats.new_tokens == 54


@pytest.mark.parametrize("make", [torch.tensor, np.array, tuple])
def test_prompts_of_other_libraries(make):
    target = make_target()
    drafter = knowing_drafter(target)
    config = greedy_config(target, max_new_tokens=5)
    out = target.generate_batch([make([5, 6, 7])], config, small_batching(), assistant_model=drafter)
    assert next(iter(out.values())).generated_tokens == plain_answer(target, [5, 6, 7], 5)


def test_prompts_first():
    """transformers' other order."""
    target = make_target()
    requests = make_requests(target, 8)
    drafter = knowing_drafter(target, [prompt + answer for prompt, _, answer in requests])
    batching = small_batching(scheduler_type="prefill_first")
    manager = target.init_continuous_batching(
        greedy_config(target), batching, assistant_model=drafter, speculation=ALL_SLOTS
    )
    results, _ = run_staggered(manager, requests)
    manager.stop(block=True, timeout=10)
    assert [results[f"r{place}"].generated_tokens for place in range(8)] == [answer for *_, answer in requests]
    assert manager.stats.tau > 1.5


def test_steps_hold_no_more_than_they_may():
    """Drafts give way to requests' own tokens and to prompts."""
    target = make_target()
    requests = make_requests(target, 12)
    drafter = knowing_drafter(target, [prompt + answer for prompt, _, answer in requests])
    sizes = []
    batching = small_batching(max_batch_tokens=14, max_requests_per_batch=14)
    manager = target.init_continuous_batching(
        greedy_config(target), batching, assistant_model=drafter, speculation=ALL_SLOTS
    )
    hook = target.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    results, _ = run_staggered(manager, requests)
    manager.stop(block=True, timeout=10)
    hook.remove()
    assert max(sizes) <= 14 and manager.stats.accepted_tokens > 0
    assert [results[f"r{place}"].generated_tokens for place in range(12)] == [answer for *_, answer in requests]


def test_an_attached_drafter_is_used():
    target = make_target()
    requests = make_requests(target, 3)
    prompts = [prompt for prompt, *_ in requests]
    drafter = knowing_drafter(target, [prompt + answer for prompt, _, answer in requests])
    attach_drafter(target, drafter)
    config = greedy_config(target, max_new_tokens=9)
    answers = [plain_answer(target, prompt, 9) for prompt in prompts]
    drafter.last_stats = None
    without = target.generate_batch(prompts, config, small_batching(), speculation=False)
    assert drafter.last_stats is None
    out = target.generate_batch(prompts, config, small_batching())
    assert drafter.last_stats.verified_tokens > 0
    assert [one.generated_tokens for one in out.values()] == answers
    assert [one.generated_tokens for one in without.values()] == answers
    detach_drafter(target)


def test_a_kept_manager_goes_on_with_its_drafter():
    target = make_target()
    prompts = [[5, 6, 7], [9, 10]]
    drafter, other = knowing_drafter(target), knowing_drafter(target)
    config = greedy_config(target, max_new_tokens=9)
    answers = [plain_answer(target, prompt, 9) for prompt in prompts]
    for _ in range(2):
        out = target.generate_batch(
            prompts, config, small_batching(), assistant_model=drafter, persistent_manager=True
        )
        assert [one.generated_tokens for one in out.values()] == answers
    with pytest.raises(ValueError, match="without this drafter: call model.destroy_cached"):
        target.generate_batch(prompts, config, assistant_model=other)
    target.destroy_cached_continuous_batching_manager()
    out = target.generate_batch(prompts, config, small_batching(), assistant_model=other)
    assert [one.generated_tokens for one in out.values()] == answers


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_several_answers_to_a_prompt(family):
    target = make_target(family)
    prompts = [[5, 6, 7] * 6, [9, 10], [11] * 30]
    answers = [plain_answer(target, prompt, 12) for prompt in prompts]
    drafter = knowing_drafter(target, [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)])
    config = copy.deepcopy(target.generation_config)
    config.update(do_sample=True, top_k=1, num_return_sequences=3, max_new_tokens=12, eos_token_id=-1)
    out = target.generate_batch(prompts, config, small_batching(), assistant_model=drafter, speculation=ALL_SLOTS)
    expected = [answer for answer in answers for _ in range(3)]
    assert [one.generated_tokens for one in out.values()] == expected
    # Those that go on from another's prompt have its context.
    assert drafter.last_stats.tau > 2.5


def test_streams_grow_to_the_answer():
    target = make_target()
    requests = make_requests(target, 5)
    drafter = knowing_drafter(target, [prompt + answer for prompt, _, answer in requests])
    manager = target.init_continuous_batching(
        greedy_config(target), small_batching(), assistant_model=drafter, speculation=ALL_SLOTS
    )
    results, parts = run_staggered(manager, requests, streaming=True)
    manager.stop(block=True, timeout=10)
    for number, (_, _, answer) in enumerate(requests):
        assert results[f"r{number}"].generated_tokens == answer
        lengths = [len(part) for part in parts[f"r{number}"]]
        assert lengths == sorted(set(lengths)) and all(part == answer[: len(part)] for part in parts[f"r{number}"])
    assert any(len(parts[f"r{number}"]) < len(answer) for number, (_, _, answer) in enumerate(requests))


def test_requests_with_options_of_their_own():
    """Greedy requests among those that draw."""
    target = make_target()
    requests = make_requests(target, 6)
    drafter = knowing_drafter(target, [prompt + answer for prompt, _, answer in requests])
    config = copy.deepcopy(target.generation_config)
    config.update(do_sample=True, temperature=0.8, top_k=20, eos_token_id=-1)
    manager = target.init_continuous_batching(config, small_batching(), assistant_model=drafter)
    manager.start()
    options = [{"temperature": 0}, {}, {"do_sample": False}, {"top_k": 1}, {"top_p": 0.5}, {"temperature": 2.0}]
    for number, ((prompt, max_new_tokens, _), own) in enumerate(zip(requests, options, strict=True)):
        manager.add_request(prompt, f"r{number}", max_new_tokens=max_new_tokens, **own)
    results = {}
    while len(results) < 6:
        out = manager.get_result(timeout=5)
        results[out.request_id] = out
    manager.stop(block=True, timeout=10)
    assert [out.error for out in results.values()] == [None] * 6
    assert all(results[f"r{number}"].generated_tokens == requests[number][2] for number in (0, 2, 3))
    assert all(len(results[f"r{number}"].generated_tokens) == requests[number][1] for number in (1, 4, 5))


def test_pausing_lets_others_use_the_model():
    target = make_target()
    requests = make_requests(target, 6)
    drafter = knowing_drafter(target, [prompt + answer for prompt, _, answer in requests])
    manager = target.init_continuous_batching(greedy_config(target), small_batching(), assistant_model=drafter)
    manager.start()
    for number, (prompt, max_new_tokens, _) in enumerate(requests):
        manager.add_request(prompt, f"r{number}", max_new_tokens=max_new_tokens)
    results = {}
    while len(results) < 6:
        with manager.pause(), torch.no_grad():
            target(torch.tensor([[1, 2]]))
        out = manager.get_result(timeout=0.05)
        if out is not None:
            results[out.request_id] = out.generated_tokens
    manager.stop(block=True, timeout=10)
    assert [results[f"r{number}"] for number in range(6)] == [answer for *_, answer in requests]


@pytest.mark.parametrize("scheduler_type", ["fifo", "prefill_first"])
def test_how_many_drafts_a_request_has_does_not_decide_on_the_first(scheduler_type, monkeypatch):
    """A draft behind which another is likely comes with more: in a cache that is nearly full, all of them or none of
    them would then stand for its own token."""
    infer, found = DraftScheduling._infer_request_tokens, []

    def twice(self, state, others):
        tokens, drafts = infer(self, state, others), self.drafter.drafts.tokens
        some = drafts.get(state.request_id, [])
        if len(some) > 1 and state.generated_tokens:
            drafts[state.request_id] = some[:1]
            found.append((len(tokens) - 1, len(infer(self, state, others)) - 1, len(some)))
            drafts[state.request_id] = some
        return tokens

    monkeypatch.setattr(DraftScheduling, "_infer_request_tokens", twice)
    target = make_target()
    prompts = [[5, 6, 7, number, 1, 2] for number in range(1, 13)]
    drafter = knowing_drafter(target, [prompt + plain_answer(target, prompt, 12) for prompt in prompts])
    batching = small_batching(num_blocks=12, max_batch_tokens=36, scheduler_type=scheduler_type)
    out = target.generate_batch(
        prompts, greedy_config(target), batching, assistant_model=drafter, speculation=ALL_SLOTS, max_new_tokens=12
    )
    assert [one.generated_tokens for one in out.values()] == [plain_answer(target, one, 12) for one in prompts]
    assert all(many == 0 or few == 1 for many, few, _ in found) and all(many > 0 or few == 0 for many, few, _ in found)
    assert any(0 < many < some for many, _, some in found) and any(many == some for many, _, some in found)
