"""What a batch of requests cannot do is refused by name, and a step that fails takes few with it."""

import copy

import pytest
import torch
from knowing import knowing_drafter, plain_answer, small_batching
from test_batching import greedy_config, make_requests, run_staggered
from tiny_targets import make_target

from dspark_hf import PromptLookup, SpeculationConfig
from dspark_hf.serving import seam
from dspark_hf.serving.batching import processor, release


@pytest.fixture(scope="module")
def pair():
    target = make_target()
    return target, knowing_drafter(target)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("repetition_penalty", 1.1), ("min_new_tokens", 3), ("no_repeat_ngram_size", 2),
        ("bad_words_ids", [[3]]), ("sequence_bias", [[[3], 1.0]]), ("max_time", 1.0), ("guidance_scale", 1.5),
        ("output_scores", True), ("forced_eos_token_id", 3), ("begin_suppress_tokens", [3]),
    ],
)  # fmt: skip
def test_options_are_refused_by_name(pair, option, value):
    target, drafter = pair
    config = greedy_config(target)
    setattr(config, option, value)
    with pytest.raises(ValueError, match=f"{option}=.* is not supported in continuous batching"):
        target.generate_batch([[1, 2]], config, assistant_model=drafter)


@pytest.mark.parametrize(
    ("name", "value"),
    [("use_async_batching", True), ("use_cuda_graph", True), ("return_logprobs", True), ("default_compile_level", 1)],
)
def test_configs_are_refused_by_name(pair, name, value):
    target, drafter = pair
    batching = small_batching(**{name: value})
    with pytest.raises(ValueError, match=f"{name}={value} is not supported together with a drafter"):
        target.generate_batch([[1, 2]], greedy_config(target), batching, assistant_model=drafter)


@pytest.mark.parametrize(
    ("speculation", "message"),
    [
        (SpeculationConfig(prompt_lookup=True), r"SpeculationConfig\(prompt_lookup="),
        (SpeculationConfig(compile=True), "compile=True"),
        (SpeculationConfig(record_drafts=True), "record_drafts=True"),
        (SpeculationConfig(measure_time=True), "measure_time=True"),
        ({"seed": 1}, "speculation must be a SpeculationConfig"),
        (False, "contradict each other"),
    ],
)
def test_speculation_is_refused_by_name(pair, speculation, message):
    target, drafter = pair
    with pytest.raises(ValueError, match=message):
        target.init_continuous_batching(greedy_config(target), assistant_model=drafter, speculation=speculation)


def test_other_ways_to_be_wrong(pair):
    target, drafter = pair
    with pytest.raises(ValueError, match="this is a PromptLookup"):
        target.generate_batch([[1]], greedy_config(target), assistant_model=PromptLookup())
    with pytest.raises(ValueError, match="drafter must be a drafter of this library"):
        target.generate_batch([[1]], greedy_config(target), assistant_model=target)
    with pytest.raises(ValueError, match="without a drafter"):
        target.generate_batch([[1]], greedy_config(target), speculation=SpeculationConfig())
    beams = greedy_config(target)
    beams.num_beams = 2
    with pytest.raises(ValueError, match="num_beams"):
        target.generate_batch([[1]], beams, assistant_model=drafter)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "at least one, got 'none'"),
        ([1, 64], {}, "from 0 to 63, at least one, got 64"),
        ([1, -1], {}, "got -1"),
        ([1.5], {}, "got 1.5"),
        ("12", {}, "got '1'"),
        ([1], {"max_new_tokens": "9"}, "max_new_tokens must be a positive int, got '9'"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens must be a positive int, got 0"),
        ([1], {"temperature": "hot"}, "temperature='hot'"),
        ([1], {"top_k": 1.5}, "top_k=1.5"),
        ([1], {"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ([1], {"do_sample": True, "temperature": -1.0}, "temperature"),
        ([1], {"seed": 1.5}, "seed must be a whole number of 64 bits, got 1.5"),
        ([1], {"seed": 2**63}, "seed must be"),
        ([1], {"stop_strings": [""]}, "stop_strings must be a text, or texts that are not empty"),
        ([1], {"stop_strings": [3]}, "stop_strings must be a text"),
        (
            [1],
            {"stop_strings": "x"},
            r"stop_strings=\['x'\] are looked for in decoded text: pass the target's tokenizer",
        ),
    ],
)
def test_requests_are_refused_when_they_come(pair, prompt, options, message):
    target, drafter = pair
    manager = target.init_continuous_batching(greedy_config(target), small_batching(), assistant_model=drafter)
    with pytest.raises(ValueError, match=message):
        manager.add_request(prompt, **options)


def test_what_does_not_go_together(pair):
    target, drafter = pair
    config = copy.deepcopy(target.generation_config)
    config.update(do_sample=True, num_return_sequences=2, eos_token_id=-1)
    manager = target.init_continuous_batching(config, small_batching(), assistant_model=drafter)
    with pytest.raises(ValueError, match="all num_return_sequences answers would be the same"):
        manager.add_request([1], seed=3)
    with pytest.raises(ValueError, match="stop_strings=.'x'. are looked for in decoded text"):
        target.generate_batch([[1]], greedy_config(target, stop_strings=["x"]), assistant_model=drafter)
    with pytest.raises(ValueError, match="tokenizer= is for stop strings"):
        target.generate_batch([[1]], greedy_config(target), tokenizer=object())


def test_a_release_that_batches_otherwise_is_told(pair, monkeypatch):
    target, drafter = pair
    monkeypatch.delattr(release.ModelRunner, "_sample")
    with pytest.raises(RuntimeError, match="ModelRunner._sample is missing. Install one that it is tested with"):
        target.generate_batch([[1, 2]], greedy_config(target), assistant_model=drafter)


def test_taking_the_wrappers_out_and_in_again(pair):
    target, drafter = pair
    seam.remove()
    seam.remove()
    with pytest.raises(TypeError, match="assistant_model"):
        target.init_continuous_batching(greedy_config(target), assistant_model=drafter)
    seam.install()
    seam.install()
    out = target.generate_batch([[1, 2]], greedy_config(target, max_new_tokens=3), small_batching(),
                                assistant_model=drafter)  # fmt: skip
    assert len(next(iter(out.values())).generated_tokens) == 3


def staggered_with(target, drafter, requests):
    manager = target.init_continuous_batching(greedy_config(target), small_batching(), assistant_model=drafter)
    results, _ = run_staggered(manager, requests)
    manager.stop(block=True, timeout=10)
    return manager, results


def test_a_step_that_fails_takes_few_with_it(monkeypatch):
    """As where a prompt is too much for the memory: those that came with it fail, the others begin the step anew."""
    target = make_target()
    requests = make_requests(target, 10)
    drafter = knowing_drafter(target, [prompt + answer for prompt, _, answer in requests])
    whole = processor.DraftProcessor.judge

    def judge(self, logits):
        if any(future.state.request_id == "r4" for future in self.inputs_and_outputs.requests_in_batch):
            raise torch.OutOfMemoryError("injected")
        whole(self, logits)

    monkeypatch.setattr(processor.DraftProcessor, "judge", judge)
    manager, results = staggered_with(target, drafter, requests)
    failed = {name for name, out in results.items() if out.error}
    assert "r4" in failed and len(failed) <= 4 and results["r4"].error == "injected"
    for name in set(results) - failed:
        assert results[name].generated_tokens == requests[int(name[1:])][2]
    assert manager.stats.failed_requests == len(failed)


def test_a_drafter_that_fails_takes_few_with_it():
    """A step cannot be made then: one request fails, the others begin anew."""
    target = make_target()
    requests = make_requests(target, 8)
    drafter = knowing_drafter(target, [prompt + answer for prompt, _, answer in requests])
    whole, num_left = drafter.propose, [3]

    def propose(*args, **kwargs):
        num_left[0] -= 1
        if num_left[0] == 0:
            raise RuntimeError("the drafter has failed")
        return whole(*args, **kwargs)

    drafter.propose = propose
    manager, results = staggered_with(target, drafter, requests)
    failed = {name for name, out in results.items() if out.error}
    assert len(failed) == 1 and manager.stats.failed_requests == 1
    for name in set(results) - failed:
        assert results[name].generated_tokens == requests[int(name[1:])][2]


def test_a_request_that_does_not_fit_fails_alone():
    target = make_target()
    requests = make_requests(target, 5)
    drafter = knowing_drafter(target, [prompt + answer for prompt, _, answer in requests])
    long = [7] * 200
    requests.insert(2, (long, 4, []))
    manager = target.init_continuous_batching(
        greedy_config(target), small_batching(num_blocks=16), assistant_model=drafter
    )
    results, _ = run_staggered(manager, requests)
    manager.stop(block=True, timeout=10)
    assert {name for name, out in results.items() if out.error} == {"r2"}
    assert all(results[f"r{place}"].generated_tokens == requests[place][2] for place in (0, 1, 3, 4, 5))


def test_a_target_without_a_distribution_fails_one_request():
    target = make_target()
    drafter = knowing_drafter(target)
    config = copy.deepcopy(target.generation_config)
    config.update(do_sample=True, top_k=1, eos_token_id=-1)
    manager = target.init_continuous_batching(config, small_batching(), assistant_model=drafter)
    whole = target.lm_head.forward

    def forward(hidden):
        logits = whole(hidden)
        # Whose text is at its second token, by the place in the pass.
        logits[0, 0] = float("nan")
        return logits

    target.lm_head.forward = forward
    manager.start()
    for number in range(3):
        manager.add_request([5 + number, 6], f"r{number}", max_new_tokens=1)
    results = {}
    while len(results) < 3:
        out = manager.get_result(timeout=5)
        results[out.request_id] = out
    target.lm_head.forward = whole
    manager.add_request([9, 6], "after", max_new_tokens=4)
    assert manager.get_result(timeout=5).generated_tokens == plain_answer(target, [9, 6], 4)
    manager.stop(block=True, timeout=10)
    assert any(out.error and "no distribution" in out.error for out in results.values())
