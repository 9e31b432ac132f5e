"""The checks of exactness find what is wrong, and pass what is right."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import dspark_hf.generation.tokens.sampling as sampling
from dspark_hf.cli.main import app
from dspark_hf.evaluation.exactness import suite
from dspark_hf.evaluation.exactness.checks import check_greedy, check_sampling
from dspark_hf.evaluation.exactness.enumeration import chi_square_p_value, exact_joint
from dspark_hf.evaluation.exactness.oracle import OracleDrafter
from dspark_hf.evaluation.exactness.suite import FAMILIES, run_exactness


@pytest.fixture
def pair():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    target = LlamaForCausalLM(config).eval()
    return target, OracleDrafter.from_target(target, block_size=3, markov_rank=4, target_layer_ids=[0]).eval()


def test_chi_square_knows_right_from_wrong():
    joint = torch.tensor([[0.5, 0.2], [0.3, 0.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(joint.flatten(), 4000, True, generator=generator)
    counts = torch.bincount(draws, minlength=4).view(2, 2)
    assert chi_square_p_value(counts, joint) > 1e-6
    assert chi_square_p_value(counts, torch.tensor([[0.4, 0.3], [0.3, 0.0]], dtype=torch.float64)) < 1e-6
    assert chi_square_p_value(counts + torch.tensor([[0, 0], [0, 1]]), joint) == 0.0
    with pytest.raises(ValueError, match="Too few samples for a chi-square test: 4"):
        chi_square_p_value(torch.ones(2, 2), torch.full((2, 2), 0.25, dtype=torch.float64))


def test_chi_square_equals_scipy():
    from scipy.stats import chisquare

    joint, counts = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64), torch.tensor([17, 40, 51, 92])
    expected = chisquare(counts.numpy(), (joint * counts.sum()).numpy()).pvalue
    assert chi_square_p_value(counts, joint) == pytest.approx(expected, rel=1e-6)


def test_joint_is_what_the_target_says(pair):
    target, _ = pair
    ids = torch.tensor([[1, 2]])
    joint = exact_joint(target, ids, 2, top_k=0, temperature=0.5, pad_token_id=0)
    assert joint.shape == (5, 5) and joint.sum().item() == pytest.approx(1.0)
    with torch.no_grad():
        first = (target(ids).logits[0, -1].double() / 0.5).softmax(-1)
        second = (target(torch.tensor([[1, 2, 3]])).logits[0, -1].double() / 0.5).softmax(-1)
    torch.testing.assert_close(joint[3], first[3] * second, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_thousand_prompts_and_all_modes():
    result = run_exactness(1000, 3000, seed=1)
    assert result["is_exact"] and result["num_prompts"] == 1000
    lens = {length for check in result["greedy"].values() for length in check["accepted_lens"]}
    assert set(range(7)) <= lens


def test_command_sees_every_accepted_length(tmp_path, monkeypatch):
    out = tmp_path / "result.json"
    # The slow tests go through all of them.
    monkeypatch.setattr(suite, "SAMPLING_OPTIONS", dict([*suite.SAMPLING_OPTIONS.items()][:2]))
    arguments = ["bench", "exactness", "--num-prompts", "16", "--num-samples", "240", "--json", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads(out.read_text())
    assert content["is_exact"] and "\nexact" in result.output and content["provenance"]["versions"]
    assert set(content["greedy"]) == set(FAMILIES)
    assert len({length for check in content["greedy"].values() for length in check["accepted_lens"]}) > 3


@pytest.fixture
def wrong(pair, monkeypatch):
    """Logits of a block in the wrong places: what a wrong position or mask looks like."""
    forward = pair[0].forward

    def shifted(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        if outputs.logits.shape[1] > 1:
            outputs.logits = outputs.logits.roll(1, -1)
        return outputs

    return lambda: monkeypatch.setattr(pair[0], "forward", shifted)


def test_wrong_greedy_output_is_found(pair, wrong):
    target, drafter = pair
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    right = check_greedy(target, drafter, inputs)
    assert right.differences == [] and right.num_prompts == 1 and len(right.accepted_lens) > 1
    wrong()
    (difference,) = check_greedy(target, drafter, inputs).differences
    assert difference["plain"] != difference["speculative"] and difference["prompt"] == [1, 2, 3]


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3, "eos_token_id": 4}], ids=str)
def test_ties_are_told_from_differences(pair, monkeypatch, options):
    """Two tokens alike: passes over several tokens round in favour of the other one."""
    target, drafter = pair
    with torch.no_grad():
        target.lm_head.weight[1] *= 3
        target.lm_head.weight[2] = target.lm_head.weight[1]
    forward = target.forward

    def rounded(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        outputs.logits[..., 2] += 1e-6 * (outputs.logits.shape[1] > 1)
        return outputs

    monkeypatch.setattr(target, "forward", rounded)
    inputs = {"input_ids": torch.tensor([[3, 1, 2], [3, 3, 3]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    check = check_greedy(target, drafter, inputs, pad_token_id=0, **options)
    assert check.num_ties > 0 and check.differences == []


def test_wrong_samples_are_found(pair, monkeypatch):
    target, drafter = pair
    ids = torch.tensor([[1, 2, 3]])
    torch.manual_seed(0)
    assert check_sampling(target, drafter, ids, "plain", 640, batch_size=64).p_value > 1e-6
    right = sampling.verify_sampled

    def lenient(draft_ids, candidates, scores, *args):
        if candidates is not None:
            probs = scores.softmax(-1)
            q = torch.zeros_like(probs[:, 1:]).scatter_add(-1, candidates.ids, candidates.probs)
            scores = ((probs + q.mean(1, keepdim=True)) / 2).log()
        return right(draft_ids, candidates, scores, *args)

    monkeypatch.setattr(sampling, "verify_sampled", lenient)
    assert check_sampling(target, drafter, ids, "plain", 2560, batch_size=64).p_value < 1e-6


def test_float32_is_asked_for(pair):
    target, drafter = pair
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with pytest.raises(ValueError, match="compared in float32, got a target in torch.bfloat16"):
        check_greedy(target.bfloat16(), drafter, inputs)


@pytest.mark.parametrize("name", ["num_prompts", "num_samples"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        run_exactness(**{name: 0})
