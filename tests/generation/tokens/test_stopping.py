"""Generation stops at the very token where plain `generate()` stops, and streams nothing more."""

import time

import pytest
import torch
from fake_drafters import OracleDrafter, TableDrafter, greedy_oracle
from tiny_targets import make_prompt, make_target, padded_prompts
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from dspark_hf import SpeculationConfig
from dspark_hf.modeling.cache_name import CACHE_NAME


class Recorder(BaseStreamer):
    """Keeps what `put` brings, as it is."""

    def __init__(self):
        self.values, self.num_ends = [], 0

    def put(self, value):
        self.values.append(value)

    def end(self):
        self.num_ends += 1


class RoundRecorder(Recorder):
    """Wants whole rounds."""

    def __init__(self):
        super().__init__()
        self.rounds = []

    def put_speculative(self, ids, accepted_len):
        self.rounds.append((ids.tolist(), accepted_len))


class StopAt(StoppingCriteria):
    """Stops at a length, and notes what it is shown."""

    def __init__(self, length):
        self.length, self.seen = length, []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append((input_ids.tolist(), None if scores is None else len(scores)))
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


def assert_same_stream(ours, theirs):
    assert [(v.shape, v.dtype, v.tolist()) for v in ours.values] == [
        (v.shape, v.dtype, v.tolist()) for v in theirs.values
    ]
    assert ours.num_ends == theirs.num_ends == 1


@pytest.mark.parametrize("pattern", [[0], [4], range(5)])
@pytest.mark.parametrize("length", [9, 12, 15])
def test_custom_criterion_and_streamer(target, pattern, length):
    ids = make_prompt(8)
    drafter, _ = greedy_oracle(target, ids, pattern, max_new_tokens=30)
    stops, streams = (StopAt(length), StopAt(length)), (Recorder(), Recorder())
    kwargs = {"max_new_tokens": 30, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    plain = target.generate(ids, stopping_criteria=[stops[0]], streamer=streams[0], **kwargs)
    out = target.generate(ids, stopping_criteria=[stops[1]], streamer=streams[1], assistant_model=drafter, **kwargs)
    assert out.sequences.tolist() == plain.sequences.tolist() and out.sequences.shape[1] == length
    assert stops[0].seen == stops[1].seen
    assert len(out.scores) == length - 8
    assert_same_stream(streams[1], streams[0])
    assert drafter.last_stats.new_tokens == length - 8


@pytest.mark.parametrize("place", [0, 1, 3, 4, 9])
def test_eos_in_the_stream(target, place):
    ids = make_prompt(8)
    drafter, plain = greedy_oracle(target, ids, [4], max_new_tokens=30)
    kwargs = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": [1000, int(plain[0, 8 + place])]}
    streams = Recorder(), Recorder()
    expected = target.generate(ids, streamer=streams[0], **kwargs)
    out = target.generate(ids, streamer=streams[1], assistant_model=drafter, **kwargs)
    assert out.tolist() == expected.tolist()
    assert_same_stream(streams[1], streams[0])


def test_rounds_go_to_a_streamer_that_wants_them(target):
    ids = make_prompt(8)
    drafter, plain = greedy_oracle(target, ids, range(5), max_new_tokens=40)
    streamer = RoundRecorder()
    eos = int(plain[0, 8 + 25])
    out = target.generate(
        ids, streamer=streamer, assistant_model=drafter, max_new_tokens=40, do_sample=False, eos_token_id=eos
    )
    assert [v.tolist() for v in streamer.values] == [ids.tolist()] and streamer.num_ends == 1
    assert [token for round_ids, _ in streamer.rounds for token in round_ids] == out[0, 8:].tolist()
    assert streamer.rounds[0][1] == 0 and len(streamer.rounds[0][0]) == 1
    assert [accepted_len for _, accepted_len in streamer.rounds[1:]] == drafter.last_stats.accepted_lens
    assert [len(round_ids) for round_ids, _ in streamer.rounds[1:]] == drafter.last_stats.emitted_lens


def test_stop_strings(tiny_tokenizer):
    target = make_target(vocab_size=260)
    ids = tiny_tokenizer("hello there", return_tensors="pt").input_ids
    num_stopped = 0
    drafter, plain = greedy_oracle(target, ids, [4], max_new_tokens=40)
    for place in range(1, 30, 4):
        stop = tiny_tokenizer.decode(plain[0, ids.shape[1] + place : ids.shape[1] + place + 2])
        kwargs = {"max_new_tokens": 40, "do_sample": False, "stop_strings": [stop], "tokenizer": tiny_tokenizer}
        expected = target.generate(ids, **kwargs)
        out = target.generate(ids, assistant_model=drafter, **kwargs)
        assert out.tolist() == expected.tolist()
        num_stopped += out.shape[1] < plain.shape[1]
    assert num_stopped > 2


def test_max_time(target):
    class Slow(Recorder):
        def put(self, value):
            time.sleep(0.03)

    ids = make_prompt(8)
    drafter, plain = greedy_oracle(target, ids, [4])
    out = target.generate(
        ids, assistant_model=drafter, max_time=0.2, max_new_tokens=64, do_sample=False, streamer=Slow()
    )
    assert 9 <= out.shape[1] < 25
    assert out[0].tolist() == plain[0, : out.shape[1]].tolist()


def test_a_streamer_that_raises_leaves_stats(target):
    class Broken(Recorder):
        def put(self, value):
            super().put(value)
            if len(self.values) == 8:
                raise KeyError("no more")

    ids = make_prompt(8)
    drafter, _ = greedy_oracle(target, ids, [4])
    with pytest.raises(KeyError, match="no more"):
        target.generate(ids, assistant_model=drafter, max_new_tokens=64, do_sample=False, streamer=Broken())
    assert drafter.last_stats.new_tokens == 7 and drafter.last_stats.total_seconds > 0


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3])
def test_small_budgets_draft_nothing_in_vain(target, max_new_tokens):
    ids = make_prompt(8)
    drafter, plain = greedy_oracle(target, ids, [4])
    out = target.generate(ids, assistant_model=drafter, max_new_tokens=max_new_tokens, do_sample=False)
    assert out.tolist() == plain[:, : 8 + max_new_tokens].tolist()
    assert drafter.offered == {1: [], 2: [], 3: [1]}[max_new_tokens]
    assert drafter.last_stats.rounds == {1: 0, 2: 1, 3: 1}[max_new_tokens]


@pytest.mark.parametrize(("num_rows", "returned"), [(1, False), (3, False), (3, True)])
def test_a_limit_far_away(target, num_rows, returned):
    """As `max_length=tokenizer.model_max_length` of a tokenizer that knows none; buffers grow with the text."""
    ids, mask = padded_prompts((9, 5, 2)[:num_rows])
    # The end is near from 110 tokens on.
    options = {"attention_mask": mask, "do_sample": False, "eos_token_id": 13, "min_new_tokens": 110,
               "exponential_decay_length_penalty": (110, 3.0), "return_dict_in_generate": returned}  # fmt: skip
    plain = target.generate(ids, max_new_tokens=200, **options)
    plain = plain.sequences if returned else plain
    assert 110 < plain.shape[1] - 9 < 200
    rows = [ids[row, 9 - mask[row].sum() :].tolist() + plain[row, 9:].tolist() for row in range(num_rows)]
    drafter = OracleDrafter(rows, [4, 2, 3, 0], 64, uneven=True)
    keep_drafting = SpeculationConfig(policy="fixed")
    out = target.generate(ids, max_length=int(1e30), assistant_model=drafter, speculation=keep_drafting, **options)
    assert (out.sequences if returned else out).tolist() == plain.tolist()
    assert drafter.last_stats.tau > 2.5


def test_prompts_of_32_bits(target):
    ids = make_prompt(8).int()
    plain = target.generate(ids, max_new_tokens=9, do_sample=False)
    out = target.generate(ids, assistant_model=TableDrafter(64), max_new_tokens=9, do_sample=False)
    assert out.dtype == plain.dtype == torch.int64 and torch.equal(out, plain)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`")
def test_max_length_criterion_of_the_user(target):
    from transformers import MaxLengthCriteria

    ids = make_prompt(8)
    drafter, plain = greedy_oracle(target, ids, [4])
    for limit in (5, 12):
        kwargs = {"stopping_criteria": [MaxLengthCriteria(limit)], "do_sample": False}
        expected = target.generate(ids, **kwargs)
        assert target.generate(ids, assistant_model=drafter, **kwargs).tolist() == expected.tolist()


@pytest.mark.parametrize("pattern", [[0], [4], range(5)])
def test_returned_cache_can_be_continued(any_target, pattern):
    ids = make_prompt(11)
    for max_new_tokens in (1, 14):
        drafter, plain = greedy_oracle(any_target, ids, pattern)
        out = any_target.generate(
            ids, assistant_model=drafter, max_new_tokens=max_new_tokens, do_sample=False, return_dict_in_generate=True
        )
        cache = out[CACHE_NAME]
        assert cache.get_seq_length() == out.sequences.shape[1] - 1
        assert not any(getattr(layer, "record_past", False) for layer in cache.layers)
        more = any_target.generate(
            out.sequences,
            attention_mask=torch.ones_like(out.sequences),
            **{CACHE_NAME: cache},
            max_new_tokens=20,
            do_sample=False,
        )
        assert more.tolist() == plain[:, : 11 + max_new_tokens + 20].tolist()


def test_without_eos_finished_rows_go_on_as_in_plain_generate(target):
    ids = make_prompt(6, batch_size=2)

    class OddLast(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, -1] % 9 == 1

    kwargs = {"stopping_criteria": [OddLast()], "max_new_tokens": 20, "do_sample": False}
    for eos in (None, 33):
        expected = target.generate(ids, eos_token_id=eos, **kwargs)
        out = target.generate(ids, assistant_model=TableDrafter(64), eos_token_id=eos, **kwargs)
        assert out.tolist() == expected.tolist()


def test_oracle_helper_is_right(target):
    """The drafter behind these tests is a real one: without any right draft it takes one round per token."""
    ids = make_prompt(8)
    plain = target.generate(ids, max_new_tokens=20, do_sample=False)
    drafter = OracleDrafter(plain.tolist(), [0], 64)
    target.generate(ids, assistant_model=drafter, max_new_tokens=20, do_sample=False)
    assert drafter.last_stats.rounds == 19 and drafter.last_stats.tau == 1.0
