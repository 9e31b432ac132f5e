"""Processors act as in plain `generate()`: the same output, and unknown ones called once per emitted token."""

import pytest
import torch
from fake_drafters import OracleDrafter, TableDrafter
from tiny_targets import make_prompt, make_target
from transformers import LogitsProcessor, LogitsProcessorList, WatermarkingConfig
from transformers.generation import logits_process

from dspark_hf import SpeculationConfig
from dspark_hf.generation.tokens.processors import PREFIX_FREE, STATELESS, is_stateless
from dspark_hf.generation.tokens.sampling import TokenChooser

# Every option of GenerationConfig that puts a processor into a greedy generation.
GREEDY_OPTIONS = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "encoder_no_repeat_ngram": {"encoder_no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[id] for id in range(40, 50)] + [[5, 7]]},
    "sequence_bias": {"sequence_bias": [[[9], 8.0], [[4, 11], -9.0], [[49], -9.0]]},
    "min_length": {"min_length": 25, "eos_token_id": list(range(20, 40))},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": list(range(20, 40))},
    "forced_bos": {"forced_bos_token_id": 6},
    "forced_eos": {"forced_eos_token_id": 9, "eos_token_id": 9},
    "remove_invalid_values": {"remove_invalid_values": True},
    "length_penalty": {"exponential_decay_length_penalty": (5, 1.4), "eos_token_id": 13},
    "suppress": {"suppress_tokens": list(range(10, 40))},
    "begin_suppress": {"begin_suppress_tokens": list(range(1, 60))},
    "renormalize": {"renormalize_logits": True, "repetition_penalty": 1.2},
    "guidance": {"guidance_scale": 1.6},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=6.0)},
    "allowed": {"prefix_allowed_tokens_fn": lambda batch_id, ids: [1 + (int(ids[-1]) + i) % 60 for i in (1, 5, 9)]},
    "together": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3, "suppress_tokens": [4, 5], "min_new_tokens": 4,
                 "eos_token_id": [7, 8], "renormalize_logits": True},
}  # fmt: skip


class Stateful(LogitsProcessor):
    """Shifts scores by a counter, and notes what it is shown."""

    def __init__(self, in_place=True):
        self.in_place = in_place
        self.prefixes, self.shapes = [], []

    def __call__(self, input_ids, scores):
        self.prefixes.append(input_ids.tolist())
        self.shapes.append((tuple(scores.shape), scores.dtype))
        scores = scores if self.in_place else scores.clone()
        scores[:, (5 * len(self.prefixes)) % scores.shape[-1]] += 6.0
        return scores


@pytest.mark.parametrize("name", GREEDY_OPTIONS)
@pytest.mark.parametrize("drafter_kind", ["oracle", "table"])
def test_greedy_options(target, name, drafter_kind):
    options = GREEDY_OPTIONS[name] | {"max_new_tokens": 30, "do_sample": False}
    for length in (1, 12):
        ids = make_prompt(length, seed=length)
        plain = target.generate(ids, **options)
        if drafter_kind == "oracle":
            drafter = OracleDrafter(plain.tolist(), range(5), 64)
        else:
            drafter = TableDrafter(64)
        out = target.generate(ids, assistant_model=drafter, **options)
        assert out.tolist() == plain.tolist()
        if drafter_kind == "oracle" and drafter.last_stats.rounds > 4:
            assert drafter.last_stats.tau > 1.5


def test_options_do_change_the_output(target):
    """Otherwise the test above would prove nothing."""
    for name in GREEDY_OPTIONS.keys() - {"remove_invalid_values"}:
        outputs = [
            [target.generate(make_prompt(length, seed=length), max_new_tokens=30, do_sample=False, **options).tolist()
             for length in (1, 12)]
            for options in ({}, GREEDY_OPTIONS[name])
        ]  # fmt: skip
        assert outputs[0] != outputs[1], name


@pytest.mark.parametrize("pattern", [[0], [4], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("stop", [{"max_new_tokens": 23}, {"max_new_tokens": 23, "eos_token_id": "late"}])
def test_stateful_processor_sees_what_plain_generate_shows_it(target, pattern, stop):
    ids = make_prompt(8)
    stop = dict(stop)
    probe = target.generate(ids, logits_processor=[Stateful()], max_new_tokens=23, do_sample=False)
    if stop.get("eos_token_id") == "late":
        stop["eos_token_id"] = int(probe[0, 8 + 13])
    theirs, ours = Stateful(), Stateful()
    plain = target.generate(ids, logits_processor=LogitsProcessorList([theirs]), do_sample=False, **stop)
    drafter = OracleDrafter(probe.tolist(), pattern, 64)
    out = target.generate(
        ids, logits_processor=LogitsProcessorList([ours]), assistant_model=drafter, do_sample=False, **stop
    )
    assert out.tolist() == plain.tolist()
    assert ours.prefixes == theirs.prefixes and ours.shapes == theirs.shapes
    assert len(ours.prefixes) == out.shape[1] - 8
    assert drafter.anchors_were_right


def test_processor_and_criterion_are_called_in_turn(target):
    """A criterion that a processor waits for must have seen every earlier token."""
    log = []

    class Processor(LogitsProcessor):
        def __call__(self, input_ids, scores):
            log.append(("processor", input_ids.shape[1]))
            return scores

    def criterion(input_ids, scores, **kwargs):
        log.append(("criterion", input_ids.shape[1]))
        return torch.tensor([False])

    ids = make_prompt(4)
    plain = target.generate(ids, max_new_tokens=12, do_sample=False)
    log.clear()
    drafter = OracleDrafter(plain.tolist(), range(5), 64)
    kwargs = {"logits_processor": [Processor()], "stopping_criteria": [criterion]}
    target.generate(ids, assistant_model=drafter, max_new_tokens=12, do_sample=False, **kwargs)
    assert log == [entry for i in range(12) for entry in (("processor", 4 + i), ("criterion", 5 + i))]


def test_synthid_and_sampling_with_a_seed_run(target):
    from transformers import SynthIDTextWatermarkingConfig

    watermark = SynthIDTextWatermarkingConfig(ngram_len=3, keys=[1, 2, 3], context_history_size=16)
    drafter = TableDrafter(64)
    out = target.generate(
        make_prompt(5), assistant_model=drafter, do_sample=True, max_new_tokens=12, watermarking_config=watermark
    )
    assert out.shape == (1, 17)
    runs = []
    for _ in range(2):
        torch.manual_seed(len(runs))
        speculation = SpeculationConfig(seed=3)
        runs.append(
            target.generate(
                make_prompt(5), assistant_model=drafter, speculation=speculation, do_sample=True, max_new_tokens=20
            ).tolist()
        )
    assert runs[0] == runs[1]


def test_scores_and_logits_are_recorded_as_in_plain_generate(target):
    ids = make_prompt(6)
    for extra in ({}, {"repetition_penalty": 1.5}, {"logits_processor": [Stateful(in_place=False)]}):
        kwargs = {"max_new_tokens": 15, "do_sample": False, "return_dict_in_generate": True, "output_scores": True,
                  "output_logits": True}  # fmt: skip
        plain = target.generate(ids, **kwargs, **extra)
        if "logits_processor" in extra:
            extra = {"logits_processor": [Stateful(in_place=False)]}
        drafter = OracleDrafter(plain.sequences.tolist(), range(5), 64)
        out = target.generate(ids, assistant_model=drafter, **kwargs, **extra)
        assert out.sequences.tolist() == plain.sequences.tolist()
        assert len(out.scores) == len(plain.scores) == len(out.logits) == 15
        for ours, theirs in zip(out.scores + out.logits, plain.scores + plain.logits, strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_no_probabilities_are_made_in_greedy_mode(monkeypatch):
    ids = make_prompt(6)
    drafter = TableDrafter(64)
    target = make_target().to(torch.bfloat16)
    made = []
    original = torch.Tensor.softmax
    monkeypatch.setattr(
        torch.Tensor, "softmax", lambda self, *a, **k: made.append(self.shape) or original(self, *a, **k)
    )
    to = torch.Tensor.to

    def noted_to(self, *args, **kwargs):
        result = to(self, *args, **kwargs)
        if result.dtype == torch.float32 and self.dtype != torch.float32 and self.shape[-1:] == (64,):
            made.append(self.shape)
        return result

    monkeypatch.setattr(torch.Tensor, "to", noted_to)
    target.generate(ids, assistant_model=drafter, max_new_tokens=12, do_sample=False)
    monkeypatch.undo()
    assert made == []


def test_lists_of_known_processors_are_true():
    """Processors called stateless are functions: called twice, with a rejected prefix between, they say the same."""
    assert PREFIX_FREE < STATELESS
    known = {
        name for name in dir(logits_process) if name.endswith(("Processor", "Warper", "Penalty", "Normalization"))
    }
    assert {cls.__name__ for cls in STATELESS} <= known

    def chooser(processor):
        return TokenChooser(LogitsProcessorList([processor]), True, 1, SpeculationConfig())

    assert not chooser(logits_process.TemperatureLogitsWarper(0.5)).in_order

    class Mine(logits_process.TemperatureLogitsWarper):
        pass

    assert chooser(Mine(0.5)).in_order


class Promised(LogitsProcessor):
    """A function of prefix and scores, as it says."""

    is_stateless = True

    def __init__(self, in_place):
        self.in_place = in_place

    def __call__(self, input_ids, scores):
        scores = scores if self.in_place else scores.clone()
        scores[:, 7:] += (5 * input_ids.sum(-1, keepdim=True) + torch.arange(7, scores.shape[-1])) % 11
        return scores


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("in_place", [False, True])
def test_drafts_go_through_a_processor_that_promises_to_keep_no_state(target, num_rows, in_place):
    ids = make_prompt(9, batch_size=num_rows)
    kwargs = {"max_new_tokens": 20, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    plain = target.generate(ids, logits_processor=[Promised(in_place=False)], **kwargs)
    drafter = OracleDrafter(plain.sequences.tolist(), range(5), 64, uneven=True)
    out = target.generate(ids, logits_processor=[Promised(in_place)], assistant_model=drafter, **kwargs)
    assert out.sequences.tolist() == plain.sequences.tolist()
    # Rows take drafts at their own pace, and what is recorded is what the target said.
    assert len(set(drafter.last_stats.accepted_lens)) > 2
    assert num_rows == 1 or len({drafter.last_stats.row_ids.count(row) for row in range(num_rows)}) > 1
    for ours, theirs in zip(out.logits, plain.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_promise_does_not_go_for_subclasses():
    class Counting(Promised):
        pass

    assert is_stateless(Promised(True)) and not is_stateless(Counting(True))


def test_batch_rows_are_processed_as_in_plain_generate():
    target = make_target("qwen3")
    ids = make_prompt(9, batch_size=3)
    ids[0, :4] = 0
    mask = (ids != 0).long()
    for name in (
        "repetition_penalty",
        "no_repeat_ngram",
        "encoder_repetition_penalty",
        "min_length",
        "allowed",
        "guidance",
    ):
        options = GREEDY_OPTIONS[name] | {"max_new_tokens": 16, "do_sample": False, "attention_mask": mask}
        plain = target.generate(ids, **options)
        out = target.generate(ids, assistant_model=TableDrafter(64), **options)
        assert out.tolist() == plain.tolist(), name
