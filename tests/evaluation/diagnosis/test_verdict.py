"""Verdicts on drafters that fit, that nobody trained, and that are broken in known ways."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from broken_drafters import VOCAB, cases, count, fresh, judge, make_target, prompts, trained

from dspark_hf import DSparkModel, Eagle3Model
from dspark_hf.evaluation import diagnose
from dspark_hf.evaluation.diagnosis.reading import Reading, alternatives

# Of the first seeds the one whose drafter reads the taps so well that a shift of them shows beside another fault.
SEED = 2


@pytest.fixture(scope="module")
def pair():
    torch.set_num_threads(1)
    target = make_target(SEED)
    return target, trained(target, SEED)


@pytest.fixture(scope="module")
def by_name(pair):
    return {case.name: case for case in cases(*pair, SEED)}


@pytest.mark.parametrize("name", ["fits", "untrained", "another target", "target's adapter"])
def test_one_seed(pair, by_name, name):
    verdict, found = judge(by_name[name], SEED, pair[1])
    assert verdict == "right", found
    assert found.fits == (name == "fits") and (found.remedy is None) == found.fits
    assert found.evidence[0]["reading"] == "as the config says"


def test_the_line_to_change_is_named(pair, by_name):
    both = judge(by_name["taps, slots"], SEED, pair[1])[1]
    assert both.verdict.startswith("The taps are shifted and slots are counted otherwise: slot 1 is right in ")
    assert both.remedy.splitlines() == [
        'config.json: "target_layer_ids": [1, 3, 4]', 'config.json: "sample_from_anchor": true',
    ]  # fmt: skip
    assert both.evidence[1]["slot_1"] > 2 * both.evidence[0]["slot_1"]
    assert "load the drafter in bfloat16 or float32" in judge(by_name["float16"], SEED, pair[1])[1].remedy


def test_what_is_tried_leaves_the_drafter_as_it_is(pair):
    target, drafter = pair
    before = {name: value.clone() for name, value in drafter.state_dict().items()}
    config, rotary = drafter.config.to_dict(), drafter.rotary_emb
    told = []
    found = diagnose(target, drafter, prompts=prompts(SEED), report=told.append)
    # Each reading once, and none of the evidence is untold.
    assert len(set(told)) == len(told) > 12
    assert {row["reading"] for row in found.evidence} <= set(told)
    assert drafter.config.to_dict() == config and drafter.rotary_emb is rotary
    assert all(torch.equal(value, before[name]) for name, value in drafter.state_dict().items())


def test_both_ways_and_each_alone(pair):
    readings = list(alternatives(*pair, template=False, has_template=False))
    taps = [reading.taps for reading in readings if reading.taps]
    # Up by one are layers 2, 4 and 5, the last of which cannot be tapped.
    assert taps == [(0, 2, 3), (2, 3, 4), (0, 3, 4), (1, 2, 4)]
    assert Reading(from_anchor=False) in readings and Reading(block_size=7) in readings
    assert not any(reading.template is not None or reading.target_adapter is not None for reading in readings)
    with_template = alternatives(*pair, template=True, has_template=True)
    assert Reading(template=False) in list(with_template)


def test_a_drafter_of_another_kind_is_tried(pair):
    found = diagnose(
        pair[0], Eagle3Model.from_target(pair[0], target_layer_ids=[0, 2, 4]).eval(), prompts=prompts(SEED)
    )
    assert found.causes == ["untrained"]


def test_sizes_that_differ_are_refused(pair):
    target = pair[0]
    other = type(target)(type(target.config)(**{**target.config.to_dict(), "hidden_size": 64}))
    with pytest.raises(ValueError, match="The hidden size differs between drafter"):
        diagnose(other, fresh(pair[0]), prompts=prompts(SEED))


def test_answers_must_be_long_enough(pair, monkeypatch):
    target, drafter = pair
    monkeypatch.setattr(target.generation_config, "eos_token_id", list(range(VOCAB)))
    with pytest.raises(ValueError, match="The target's answers are too short to try a drafter on"):
        diagnose(target, drafter, prompts=prompts(SEED, num=1))


def test_the_command_tells_by_its_status(dspark, models, tmp_path):
    outcome = dspark("diagnose", models[1], models[3], "--dtype", "float32", "--json", tmp_path / "out.json")
    assert outcome.code == 1, outcome.err
    assert "The drafter was not trained" in outcome.out and "Train it: dspark train." in outcome.out
    assert json.loads((tmp_path / "out.json").read_text())["causes"] == ["untrained"]
    refused = dspark("diagnose", models[1], "/no/such/drafter")
    assert refused.code == 2 and "/no/such/drafter" in refused.err


@pytest.fixture
def models(tiny_target_dir, tiny_drafter_dir):
    return ["--target", tiny_target_dir, "--drafter", tiny_drafter_dir]


@pytest.mark.slow
def test_seeds_it_was_not_written_with():
    counts = count(range(6000, 6020))
    wrong = sum(verdicts["wrong"] for verdicts in counts.values())
    assert counts["fits"]["wrong"] == 0
    assert wrong <= 0.02 * sum(verdicts.total() for verdicts in counts.values()), counts


@pytest.mark.slow
def test_the_shipped_drafter_fits():
    from dspark_hf.cli.models import load_models

    models = load_models("embedded", "embedded", dtype="bfloat16", device="cpu")
    assert diagnose(models.target, models.drafter, models.tokenizer).fits
    assert isinstance(models.drafter, DSparkModel)
