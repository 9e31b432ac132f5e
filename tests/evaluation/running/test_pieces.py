"""The pieces of a generation, timed alone, and how close a whole one comes to them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3NextConfig

from dspark_hf import AutoDrafter, DFlashModel, Eagle3Model, SpeculationStats
from dspark_hf.evaluation import Run
from dspark_hf.evaluation.running.pieces import Pieces, can_time, efficiency, time_pieces, time_pieces_of
from dspark_hf.generation.target.flat import FlatRunner


@pytest.fixture(scope="module")
def pair(tiny_target_dir, tiny_drafter_dir):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir, dtype=torch.float32).eval()
    return target, AutoDrafter.from_pretrained(tiny_drafter_dir).eval().bind(target)


def made_up(seconds, plain_seconds, emitted):
    """A made-up run of rounds that each made `emitted` tokens, and a plain one."""
    stats = SpeculationStats(rounds=len(emitted))
    for num in emitted:
        stats.record(0, 4, num - 1, num)
    ids = [[1] * (1 + sum(emitted))]
    return Run(ids, seconds, stats), Run(ids, plain_seconds)


def test_efficiency_is_what_is_reached_of_what_the_pieces_allow():
    pieces = Pieces(plain=0.1, verify=0.12, draft=0.03)
    assert pieces.ideal_ratio(3.0) == pytest.approx(2.0)
    runs = [
        (*made_up(1.0, 1.8, [2, 4]), pieces),
        (*made_up(1.0, 1.0, [3]), pieces),
        (*made_up(1.0, 2.0, [3, 3]), Pieces(0.2, 0.24, 0.06)),
        (*made_up(1, 1, []), pieces),
    ]
    result = efficiency(runs)
    assert result["calls"] == pytest.approx([0.9, 0.5, 1.0]) and result["median"] == pytest.approx(0.9)
    assert (result["plain_step_seconds"], result["verify_seconds"]) == pytest.approx((0.1, 0.12))
    assert result["draft_seconds"] == pytest.approx(0.03)
    assert efficiency(runs[3:])["median"] is None


@pytest.mark.parametrize("num_rows", [1, 3])
def test_pieces_are_the_passes_of_a_round(pair, monkeypatch, num_rows):
    target, drafter = pair
    tokens, widths, states = [], [], []
    hook = target.lm_head.register_forward_hook(lambda module, args, out: tokens.append(out.shape[:2]))
    propose, extend = type(drafter).propose, type(drafter).extend

    def note_propose(self, state, *args, **kwargs):
        states.append(list(state.context_lens))
        return propose(self, state, *args, **kwargs)

    def note_extend(self, state, features, *args):
        widths.append(features.shape[1])
        return extend(self, state, features, *args)

    monkeypatch.setattr(type(drafter), "propose", note_propose)
    monkeypatch.setattr(type(drafter), "extend", note_extend)
    pieces = time_pieces(target, drafter, [[1, 2, 3, 4, 5, 6, 7, 8, 9]] * num_rows, num_taken=2)
    hook.remove()
    assert min(pieces.plain, pieces.verify, pieces.draft) > 0
    num_slots = drafter.config.num_slots
    # Two prompts; then the three pieces in turn, six times each, the drafter's through the same head.
    assert tokens[2:5] == [(num_rows, 1), (1, num_rows * (num_slots + 1)), (num_rows, num_slots)]
    assert tokens[2:] == 6 * tokens[2:5]
    assert states == [[8] * num_rows] * 6 and widths == [8] + [2] * 6


@pytest.mark.parametrize("drafter_cls", [DFlashModel, Eagle3Model])
def test_other_drafters(pair, drafter_cls):
    drafter = drafter_cls.from_target(pair[0], target_layer_ids=[0, 1, 2])
    assert time_pieces(pair[0], drafter, [[1, 2, 3, 4, 5]], num_taken=1).draft > 0


def test_rows_are_cut_in_the_middle_of_their_answers(pair, monkeypatch):
    seen = []
    verify = FlatRunner.verify
    monkeypatch.setattr(FlatRunner, "verify", lambda self, ids, *args: seen.append(ids) or verify(self, ids, *args))
    stats = SpeculationStats(rounds=1)
    stats.record(0, 2, 1, 2)
    time_pieces_of(*pair, [[1, 2, 3], [1, 2]], Run([[4, 5, 6, 7], [8, 9]], 1.0, stats))
    # Five tokens of the first and three of the second make four of each.
    assert seen[0][:, :4].tolist() == [[1, 2, 3, 4], [1, 2, 8, 9]]
    assert (seen[0][:, 4:] == seen[0][:, 3:4]).all()


def test_rows_must_have_one_length(pair):
    with pytest.raises(ValueError, match=r"one length, of at least 2 tokens, got \[2, 3\]"):
        time_pieces(*pair, [[1, 2], [1, 2, 3]], 1)


def test_recurrent_targets_are_left_out(pair):
    assert can_time(pair[0])
    config = Qwen3NextConfig(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    target = type("Hybrid", (), {"config": config})
    assert not can_time(target)
