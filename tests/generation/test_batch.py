"""Batches: every row as in plain `generate()`."""

import pytest
import torch
from fake_drafters import TableDrafter, greedy_oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_targets import make_prompt, make_target

from dspark_hf import DSparkModel, SpeculationConfig


def padded_prompts(lengths, side, seed=0):
    """Rows of different lengths, padded with 0, and their mask."""
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, place] = make_prompt(length, seed=seed + row)[0]
    return ids, (ids != 0).long()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("lengths", [(7, 7, 7), (3, 12, 7), (1, 20)])
def test_padded_rows(any_target, side, lengths):
    ids, mask = padded_prompts(lengths, side)
    drafter, plain = greedy_oracle(any_target, ids, range(5), attention_mask=mask, max_new_tokens=40)
    kwargs = {"attention_mask": mask, "max_new_tokens": 40, "do_sample": False}
    out = any_target.generate(ids, assistant_model=drafter, **kwargs)
    assert out.tolist() == plain.tolist()
    assert drafter.anchors_were_right
    # Rows that agree on how many drafts are right lose nothing to one another.
    assert drafter.last_stats.tau > 2.5


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_rows_that_disagree_and_finish_at_different_times(family):
    target = make_target(family)
    ids, mask = padded_prompts((5, 9, 2, 14), "left")
    plain = target.generate(ids, attention_mask=mask, max_new_tokens=30, do_sample=False)
    eos = [int(plain[0, 14 + 3]), int(plain[2, 14 + 12])]
    kwargs = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False, "eos_token_id": eos}
    expected = target.generate(ids, **kwargs)
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    for assistant in (TableDrafter(64), drafter):
        assert target.generate(ids, assistant_model=assistant, **kwargs).tolist() == expected.tolist()
        assert assistant.last_stats.new_tokens == sum(
            next((i + 1 for i, token in enumerate(row) if token in eos), 30) for row in expected[:, 14:].tolist()
        )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_batch(target, data):
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4), "lengths")
    side = data.draw(st.sampled_from(["left", "right"]), "side")
    ids, mask = padded_prompts(lengths, side, seed=data.draw(st.integers(0, 99), "seed"))
    num_slots = data.draw(st.integers(1, 5), "slots")
    budget = data.draw(st.integers(1, 16), "budget")
    plain = target.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False)
    made = sorted(set(plain[:, ids.shape[1] :].flatten().tolist()))
    eos = data.draw(st.lists(st.sampled_from(made), max_size=3), "eos") or None
    kwargs = {"attention_mask": mask, "max_new_tokens": budget, "eos_token_id": eos, "do_sample": False}
    expected = target.generate(ids, **kwargs)
    pattern = data.draw(st.lists(st.integers(0, num_slots), min_size=1, max_size=4), "pattern")
    drafter, _ = greedy_oracle(
        target, ids, pattern, attention_mask=mask, max_new_tokens=16, num_slots=num_slots, enable_confidence_head=True
    )
    threshold = data.draw(st.sampled_from([0.0, 0.5]), "threshold")
    out = target.generate(
        ids, assistant_model=drafter, speculation=SpeculationConfig(confidence_threshold=threshold), **kwargs
    )
    assert out.tolist() == expected.tolist()


def test_num_return_sequences(target):
    out = target.generate(
        make_prompt(5), assistant_model=TableDrafter(64), do_sample=True, num_return_sequences=3, max_new_tokens=12
    )
    assert out.shape == (3, 17) and len({tuple(row) for row in out.tolist()}) == 3


def test_features_of_padded_rows(target):
    ids, mask = padded_prompts((3, 12, 7), "left")
    drafter, plain = greedy_oracle(target, ids, range(5), attention_mask=mask, max_new_tokens=20)
    target.generate(ids, attention_mask=mask, assistant_model=drafter, max_new_tokens=20, do_sample=False)
    for row, known in enumerate(drafter.rows):
        features = torch.cat(drafter.state.features[row])
        with torch.no_grad():
            states = target(torch.tensor([known]), output_hidden_states=True).hidden_states
        expected = torch.cat([states[1], states[3]], -1)[0, : features.shape[0]]
        assert features.shape[0] > mask[row].sum() + 10
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)


def test_streamer_of_a_batch_is_fed_as_in_plain_generate(target):
    class Recorder:
        def __init__(self):
            self.values = []

        def put(self, value):
            self.values.append(value.tolist())

        def end(self):
            self.values.append("end")

    ids = make_prompt(6, batch_size=3)
    streams = Recorder(), Recorder()
    target.generate(ids, streamer=streams[0], max_new_tokens=12, do_sample=False)
    target.generate(ids, streamer=streams[1], assistant_model=TableDrafter(64), max_new_tokens=12, do_sample=False)
    assert streams[0].values == streams[1].values
