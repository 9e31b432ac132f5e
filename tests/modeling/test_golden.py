"""The reference implementation's numbers, reproduced in float32 within 1e-5.

Every folder under `$DSPARK_GOLDEN_DIR` is a case: config.json, model.safetensors, expected.safetensors, and with a
training batch inputs.safetensors and loss.json. A case without copies of embedding and head is a whole repository.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dspark_hf import AutoDrafter
from dspark_hf.ops.blocks import block_targets, slot_weights
from dspark_hf.trainers.metrics import DraftMetrics
from dspark_hf.trainers.objective import DistillObjective

GOLDEN = Path(os.environ.get("DSPARK_GOLDEN_DIR") or Path(__file__).parents[1] / "golden")
CASES = sorted(path.parent for path in GOLDEN.glob("*/expected.safetensors"))
TRAINING_CASES = [path for path in CASES if (path / "inputs.safetensors").exists()]
TOLERANCE = 1e-5


def load(path):
    drafter = AutoDrafter.from_pretrained(path)
    if drafter.embed_tokens is None:
        drafter.bind(AutoModelForCausalLM.from_pretrained(path))
    return drafter


@pytest.fixture(params=TRAINING_CASES, ids=lambda path: path.name)
def case(request):
    path = request.param
    return (
        load(path),
        load_file(path / "inputs.safetensors"),
        load_file(path / "expected.safetensors"),
        json.loads((path / "loss.json").read_text()),
    )


def check(actual, expected):
    """Within 1e-5 of the largest entry, where that is above 1: an entry of a product is rounded as its terms are."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE * scale)


def test_there_are_cases():
    assert CASES, f"no golden cases under {GOLDEN}"


def run_blocks(drafter, inputs, objective=None):
    return drafter(
        inputs["input_ids"], inputs["features"], inputs["anchors"], inputs["keep"].bool(), objective=objective
    )


def test_targets_and_masks(case):
    drafter, inputs, expected, _ = case
    target_ids, source, block_mask = block_targets(
        inputs["input_ids"], inputs["loss_mask"], inputs["anchors"], inputs["keep"], drafter.config.num_slots
    )
    assert torch.equal(block_mask, expected["eval_mask"].bool())
    assert torch.equal(target_ids[block_mask], expected["target_ids"][block_mask])
    hidden = inputs["last_hidden_states"][torch.arange(len(source))[:, None, None], source]
    logits = drafter.base_logits(hidden)
    check(logits[block_mask], expected["aligned_target_logits"][block_mask])


def test_training_logits_and_confidence(case):
    drafter, inputs, expected, _ = case
    output, mask = run_blocks(drafter, inputs), expected["eval_mask"].bool()
    logits = drafter.base_logits(output.hidden)
    if output.markov_states is not None:
        logits = logits + drafter.markov_head.markov_w2(output.markov_states)
    check(logits[mask], expected["draft_logits"][mask])
    assert (output.confidence_logits is None) == ("confidence_logits" not in expected)
    if output.confidence_logits is not None:
        check(output.confidence_logits[mask], expected["confidence_logits"][mask])


def test_loss(case):
    drafter, inputs, expected, loss = case
    metrics = DraftMetrics(drafter.config.num_slots)
    objective = DistillObjective(
        inputs["input_ids"],
        inputs["loss_mask"],
        inputs["anchors"],
        inputs["keep"],
        inputs["last_hidden_states"],
        ce_weight=loss["ce_loss_alpha"],
        tv_weight=loss["l1_loss_alpha"],
        confidence_weight=loss["confidence_head_alpha"],
        slot_decay=loss["loss_decay_gamma"],
        chunk_size=16,
        metrics=metrics,
    )
    check(run_blocks(drafter, inputs, objective), expected["loss"].squeeze())
    # The figures must be those of the expected distributions.
    mask = expected["eval_mask"].bool()
    draft, target = (expected[name].softmax(-1) for name in ("draft_logits", "aligned_target_logits"))
    l1 = (draft - target).abs().sum(-1)
    weights = slot_weights(mask.shape[-1], loss["loss_decay_gamma"]).expand_as(mask)[mask]
    assert metrics.means()["l1"] == pytest.approx(float((l1[mask] * weights).sum() / weights.sum()), abs=1e-5)
    first = mask[..., 0]
    assert metrics.means()["expected_accept_slot_1"] == pytest.approx(
        float((1 - l1[..., 0] / 2)[first].mean()), abs=1e-5
    )


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_two_cached_rounds(path):
    drafter, expected = load(path), load_file(path / "expected.safetensors")
    state = drafter.start(1)
    for step in (0, 1):
        drafter.extend(state, expected[f"decode{step}.features"])
        anchor_ids = expected[f"decode{step}.anchor"]
        hidden, read = drafter.block_hidden(state, anchor_ids)
        check(hidden, expected[f"decode{step}.hidden"])
        if f"decode{step}.pre_norm" in expected:
            check(read, expected[f"decode{step}.pre_norm"])
        seen = []

        def pick(logits, token_ids, drafted_ids, seen=seen):
            seen.append(logits)
            return logits.argmax(-1), None

        proposal = drafter.propose(state, anchor_ids, pick)
        assert torch.equal(proposal.ids, expected[f"decode{step}.tokens"])
        check(torch.stack(seen, 1), expected[f"decode{step}.logits"])
        if f"decode{step}.confidence_logits" in expected:
            check(proposal.confidence_logits, expected[f"decode{step}.confidence_logits"])


@pytest.mark.parametrize("path", [path for path in CASES if path not in TRAINING_CASES], ids=lambda path: path.name)
def test_a_training_pass_gives_what_the_rounds_give(path):
    drafter, expected = load(path), load_file(path / "expected.safetensors")
    rounds = ("decode0", "decode1")
    features = torch.cat([expected[f"{name}.features"] for name in rounds], 1)
    anchors = torch.tensor([[expected["decode0.features"].shape[1], features.shape[1]]])
    ids = torch.zeros(1, features.shape[1] + 1, dtype=torch.int64)
    ids[0, anchors[0]] = torch.cat([expected[f"{name}.anchor"] for name in rounds])
    output = drafter(ids, features, anchors, torch.ones_like(anchors, dtype=torch.bool))
    check(output.hidden[0], torch.cat([expected[f"{name}.hidden"] for name in rounds]))
    confidence = torch.cat([expected[f"{name}.confidence_logits"] for name in rounds])
    # Later slots read tokens that were drafted in the rounds.
    check(output.confidence_logits[0, :, 0], confidence[:, 0])
