"""Survival that comes true: figures as of scikit-learn, temperatures that are found again, and whose they are."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, roc_auc_score
from transformers import LlamaForCausalLM

from dspark_hf import (
    AutoDrafter,
    Calibration,
    DSparkForCausalLM,
    DSparkModel,
    PrefixScheduler,
    SpeculationConfig,
)
from dspark_hf.evaluation.lengths.block_records import BlockRecord, record_blocks
from dspark_hf.evaluation.lengths.calibration import (
    auroc,
    calibrate,
    calibration_error,
    fit_mode,
    fit_temperatures,
    survival_figures,
)
from dspark_hf.generation.lengths.calibration import drafter_fingerprint, slot_temperatures


def blocks(num_blocks, temperatures, seed=0):
    """Made-up confidence logits that are too sure by a temperature a slot, and what then stands."""
    rng = np.random.default_rng(seed)
    true_logits = rng.normal(0.5, 1.5, (num_blocks, len(temperatures)))
    stands = rng.random(true_logits.shape) < 1 / (1 + np.exp(-true_logits))
    return true_logits * np.array(temperatures), stands.cumprod(1).sum(1)


def test_temperatures_are_found_again():
    logits, stood = blocks(40_000, [2.0, 0.5, 1.0])
    known = np.full(len(stood), 3)
    assert fit_temperatures(logits, stood, known) == pytest.approx([2.0, 0.5, 1.0], rel=0.15)
    survival = (1 / (1 + np.exp(-logits / np.array([2.0, 0.5, 1.0])))).cumprod(1)
    assert max(survival_figures(survival, stood, known)["ece"]) < 0.02
    assert max(survival_figures((1 / (1 + np.exp(-logits))).cumprod(1), stood, known)["ece"]) > 0.05


def test_slots_that_the_answer_was_too_short_for_do_not_count():
    logits, stood = blocks(20_000, [2.0, 2.0])
    # As if the second slot of every other block had been rejected.
    known = np.where(np.arange(20_000) % 2 == 0, 2, 1)
    cut = np.minimum(stood, known)
    assert fit_temperatures(logits, cut, known) == pytest.approx([2.0, 2.0], rel=0.3)
    assert fit_temperatures(logits, cut, np.full(20_000, 2))[1] != pytest.approx(2.0, rel=0.5)


def test_figures_are_those_of_scikit_learn():
    logits, stood = blocks(500, [1.5, 1.5])
    survival = (1 / (1 + np.exp(-logits))).cumprod(1)
    figures = survival_figures(survival, stood, np.full(500, 2))
    for slot in range(2):
        assert figures["auroc"][slot] == pytest.approx(roc_auc_score(stood > slot, survival[:, slot]))
        assert figures["brier"][slot] == pytest.approx(brier_score_loss(stood > slot, survival[:, slot]))
    ties = np.round(survival[:, 0], 1)
    assert auroc(ties, stood > 0) == pytest.approx(roc_auc_score(stood > 0, ties))
    assert auroc(ties, np.ones(500, bool)) is None
    assert sum(one["count"] for one in figures["reliability"]) == 1000


def test_error_is_the_distance_of_bins():
    assert calibration_error(np.array([0.9, 0.9, 0.1, 1.0]), np.array([True, False, False, True])) == pytest.approx(
        (0.8 + 0.1) / 4
    )


def test_too_few_answers_and_no_head_are_refused():
    with pytest.raises(ValueError, match="fits on half of the answers and judges on the others, got 1"):
        fit_mode([BlockRecord([0], [1], [[0.5]], [[0.0]])])
    with pytest.raises(ValueError, match="no confidence head to calibrate"):
        fit_mode([BlockRecord([0], [1], [[0.5]])] * 2)
    # Nothing is known of the second slot in one half.
    long, short = (BlockRecord([0], [known], [[0.5] * 2], [[0.0] * 2]) for known in (2, 1))
    with pytest.raises(ValueError, match="of 2 slots is calibrated on answers of more than 2 tokens.*of more than 1:"):
        fit_mode([long, short])


@pytest.fixture(scope="module")
def pair(tiny_target_dir, tiny_drafter_dir):
    target = LlamaForCausalLM.from_pretrained(tiny_target_dir).eval()
    return target, AutoDrafter.from_pretrained(tiny_drafter_dir).bind(target)


def test_a_record_is_what_generate_accepts(pair):
    target, drafter = pair
    prompt, options = [10, 20, 30, 40], {"do_sample": False, "pad_token_id": 256}
    ids = torch.tensor([prompt])
    answer = target.generate(ids, **options, max_new_tokens=40, min_new_tokens=40, speculation=False)[0, 4:].tolist()
    record = record_blocks(target, drafter, prompt, answer, 0.0)
    speculation = SpeculationConfig(policy="fixed", prompt_lookup=False)
    target.generate(
        ids, assistant_model=drafter, speculation=speculation, **options, max_new_tokens=40, min_new_tokens=40
    )
    stats, place = drafter.last_stats, 0
    for accepted, confidences in zip(stats.accepted_lens, stats.confidences, strict=True):
        assert record.lens[place] == accepted or place + accepted + 1 >= 39
        head = 1 / (1 + np.exp(-np.array(record.confidence_logits[place])))
        assert head[: len(confidences)] == pytest.approx(confidences, abs=1e-3)
        place += accepted + 1
    assert len(record.lens) == 39 and record.known[-5:] == [4, 4, 3, 2, 1]


def test_sampled_records_stand_as_often_as_drafts_would(pair):
    """A drafter that drafts from the target's own distribution: every draft stands."""
    target, drafter = pair
    answer = target.generate(
        torch.tensor([[9, 8, 7]]), do_sample=True, top_k=0, max_new_tokens=60, min_new_tokens=60, speculation=False
    )[0, 3:].tolist()
    lens = [sum(record_blocks(target, drafter, [9, 8, 7], answer, 1.0, seed=seed).lens) for seed in range(3)]
    assert 0 <= min(lens) and max(lens) < 4 * 59


class TestFile:
    def test_it_is_loaded_with_the_drafter(self, pair, tiny_target_dir, tiny_drafter_dir, tiny_tokenizer, tmp_path):
        target, drafter = pair
        calibration = calibrate(target, drafter, tiny_tokenizer, ["One.", "Two.", "Three."], max_new_tokens=16)
        folder = shutil.copytree(tiny_drafter_dir, tmp_path / "drafter")
        calibration.save(folder)
        again = AutoDrafter.from_pretrained(folder)
        assert again.calibration == calibration and drafter.calibration is None
        assert slot_temperatures(None, target, again, 0.0) == calibration.temperatures
        assert slot_temperatures(None, target, again, 1.0) == calibration.sampled_temperatures
        assert slot_temperatures(None, target, again, 0.7) is None
        # As SGLang's own files are.
        content = json.loads((folder / "calibration.json").read_text())
        (folder / "calibration.json").write_text(json.dumps({"temperatures": content["temperatures"], "other": 1}))
        assert Calibration.load(folder).temperatures == calibration.temperatures

    def test_another_pair_is_told(self, pair, tiny_tokenizer):
        target, drafter = pair
        calibration = calibrate(target, drafter, tiny_tokenizer, ["One.", "Two."], max_new_tokens=12)
        other = DSparkModel(drafter.config).eval().bind(target)
        message = "made for other models .drafter: '.*' when it was calibrated, '.*' now.. Calibrate these"
        speculation = SpeculationConfig(policy=PrefixScheduler(calibration=calibration), check_target=False)
        with pytest.raises(ValueError, match=message):
            target.generate(torch.tensor([[1, 2]]), assistant_model=other, speculation=speculation, max_new_tokens=4)
        # One that came with the drafter is only warned about.
        other.calibration = calibration
        with pytest.warns(UserWarning, match="calibration.json is not used. This calibration was made for other"):
            target.generate(torch.tensor([[1, 2]]), assistant_model=other, max_new_tokens=4, do_sample=False)

    def test_another_length_is_refused(self, pair):
        target, drafter = pair
        speculation = SpeculationConfig(policy=PrefixScheduler(calibration=Calibration([1.0, 2.0])))
        with pytest.raises(ValueError, match="temperatures for 2 slots, and the drafter has 4"):
            target.generate(torch.tensor([[1, 2]]), assistant_model=drafter, speculation=speculation, max_new_tokens=4)

    def test_a_damaged_file_is_warned_about(self, tiny_drafter_dir, tmp_path):
        folder = shutil.copytree(tiny_drafter_dir, tmp_path / "drafter")
        (folder / "calibration.json").write_text('{"temperatures": [1.0, -1.0, 1.0, 1.0]}')
        message = "is not used: .*calibration.json: temperatures of a calibration must be a list of numbers from"
        with pytest.warns(UserWarning, match=message):
            assert AutoDrafter.from_pretrained(folder).calibration is None

    @pytest.mark.parametrize(
        "more", [{"made_for": ["x"]}, {"sampled_temperatures": [10**400] * 4}], ids=["list", "huge"]
    )
    def test_a_run_goes_on_without_a_damaged_one(self, pair, tiny_drafter_dir, more, tmp_path):
        target, _ = pair
        folder = shutil.copytree(tiny_drafter_dir, tmp_path / "drafter")
        (folder / "calibration.json").write_text(json.dumps({"temperatures": [1.0] * 4, **more}))
        with pytest.warns(UserWarning, match="The calibration of .* is not used: "):
            drafter = AutoDrafter.from_pretrained(folder)
        assert target.generate(torch.tensor([[1, 2]]), assistant_model=drafter, max_new_tokens=4).shape == (1, 6)
        with pytest.raises(ValueError, match="calibration.json: .* of a calibration must be"):
            Calibration.load(folder)

    def test_it_is_saved_with_the_drafter(self, pair, tiny_target_dir, tmp_path):
        target, drafter = pair
        calibration = Calibration([0.5, 1.0, 1.5, 2.0], made_for={"drafter": drafter_fingerprint(drafter)})
        own = type(drafter)(drafter.config).eval()
        own.load_state_dict(drafter.state_dict(), strict=False)
        own.calibration = calibration
        own.save_pretrained(tmp_path / "alone")
        assert AutoDrafter.from_pretrained(tmp_path / "alone").calibration == calibration
        both = DSparkForCausalLM.from_parts(LlamaForCausalLM.from_pretrained(tiny_target_dir), own)
        both.save_pretrained(tmp_path / "both")
        again = DSparkForCausalLM.from_pretrained(tmp_path / "both")
        assert again.drafter.calibration == calibration
        again.save_pretrained(tmp_path / "again")
        assert AutoDrafter.from_pretrained(tmp_path / "again").calibration == calibration
        # Other weights are not calibrated by it, nor by one that does not say whose it is.
        Calibration([1.0] * 4).save(tmp_path / "alone")
        again.drafter.calibration = AutoDrafter.from_pretrained(tmp_path / "alone").calibration
        with torch.no_grad():
            again.drafter.fc.weight += 1
        again.save_pretrained(tmp_path / "trained")
        assert AutoDrafter.from_pretrained(tmp_path / "trained").calibration is None

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{}", "is no calibration: it has no `temperatures`. Make one with `dspark calibrate`"),
            ('{"temperatures": []}', r"json: temperatures of a calibration must be .* from 0.001 to 1000, got \[\]"),
            ('{"temperatures": [1, "a"]}', "temperatures of a calibration must be a list of numbers"),
            ('{"temperatures": [1, true]}', "temperatures of a calibration must be a list of numbers"),
            ('{"temperatures": [1%s]}' % ("0" * 400), "temperatures .* from 0.001 to 1000, got .10{70,}"),
            ('{"temperatures": [1e-300]}', "temperatures .* from 0.001 to 1000, got .1e-300.. Calibrate again"),
            (
                '{"temperatures": [1.0], "made_for": "all"}',
                "made_for of a calibration must be keys and values, got 'all'",
            ),
            (
                '{"temperatures": [1.0], "made_for": null}',
                "made_for of a calibration must be keys and values, got None",
            ),
            ('{"temperatures": [1.0], "num_samples": "many"}', "num_samples of a calibration is of the wrong kind"),
            ('{"temperatures": [1.0], "dataset": 3}', "dataset of a calibration is of the wrong kind, got 3"),
            (
                '{"temperatures": [1.0], "ece_after": true}',
                "ece_after of a calibration is of the wrong kind, got True",
            ),
            ('{"temperatures": [1.0], "figures": [1]}', "figures of a calibration must be keys and values"),
            (
                '{"temperatures": [1.0], "sampled_temperatures": [1.0, 2.0]}',
                "1 for greedy decoding and 2 for sampling",
            ),
            (
                '{"temperatures": [1.0], "sampled_temperatures": [NaN]}',
                "sampled_temperatures of a calibration must be",
            ),
        ],
    )
    def test_what_is_none(self, content, message, tmp_path):
        path = tmp_path / "calibration.json"
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Calibration.load(path)
