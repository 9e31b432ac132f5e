"""How likely drafts stand: estimates from rounds, the head, the calibrated head, and which of them is believed."""

import numpy as np
import pytest
import torch

from dspark_hf import AcceptanceEstimator
from dspark_hf.generation.lengths.forecast import Forecast
from dspark_hf.generation.lengths.survival import Signals, SurvivalPredictor, certain_signals


def rounds(chance, num_rounds, seed=0, num_slots=3):
    """Made-up rounds of one row: max q, and how many drafts stand, where `chance(slot, max_q)` is that of one."""
    rng = np.random.default_rng(seed)
    for _ in range(num_rounds):
        max_probs = rng.uniform(0.2, 0.99, num_slots)
        stood = 0
        while stood < num_slots and rng.random() < chance(stood, max_probs[stood]):
            stood += 1
        yield max_probs, min(stood + 1, num_slots), stood


class TestEstimator:
    def test_it_has_two_numbers_and_one_for_each_slot(self):
        assert len(AcceptanceEstimator(5)._numbers) == 7

    def test_it_learns_the_chances(self):
        estimator = AcceptanceEstimator(3)

        def chance(slot, max_q):
            logit = 0.8 * np.log(max_q / (1 - max_q)) + (0.3, 0.0, -0.6)[slot]
            return 1 / (1 + np.exp(-logit))

        for max_probs, judged, stood in rounds(chance, 1500):
            estimator.note(max_probs[None], [judged], [stood])
        for max_q in (0.3, 0.6, 0.9):
            expected = [chance(slot, max_q) for slot in range(3)]
            assert estimator.predict([[max_q] * 3])[0] == pytest.approx(expected, abs=0.1)

    def test_before_it_has_seen_anything_surer_drafts_are_likelier(self):
        first = AcceptanceEstimator(2).predict([[0.2, 0.5], [0.9, 1.0]])
        assert (first[0] < first[1]).all() and ((first > 0) & (first < 1)).all()

    def test_a_useless_drafter_is_soon_seen(self):
        estimator = AcceptanceEstimator(3)
        for _ in range(30):
            estimator.note(np.full((1, 3), 0.9), [1], [0])
        assert (estimator.predict([[0.9, 0.9, 0.9]]) < 0.15).all()

    def test_what_is_no_number_is_as_good_as_none(self):
        estimator = AcceptanceEstimator(2)
        values = estimator.predict([[float("nan"), 2.0]])
        assert np.isfinite(values).all() and values[0, 0] < 0.1
        estimator.note(np.full((1, 2), np.nan), [1], [0])

    def test_no_slots(self):
        for none in (0, 2.5, "3"):
            with pytest.raises(ValueError, match=f"num_slots must be a whole number of at least 1, got {none!r}"):
                AcceptanceEstimator(none)
        with pytest.raises(ValueError, match="max_probs has 3 slots, and this estimator's drafter 2"):
            AcceptanceEstimator(2).predict([[0.5, 0.5, 0.5]])


class TestPredictor:
    def test_signals_are_read_at_once(self):
        read = Signals(torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16), torch.tensor([[0.5, 0.25]])).read()
        assert read["logits"].tolist() == [[1.0, 2.0]] and read["max_probs"].tolist() == [[0.5, 0.25]]
        assert Signals(None, None).read() == {} and list(Signals(None, torch.ones(1, 1)).read()) == ["max_probs"]

    @pytest.mark.parametrize(("sharpness", "used"), [(1.0, "head"), (-1.0, "estimate"), (3.0, "calibrated")])
    def test_who_predicts_best_is_believed(self, sharpness, used):
        """A head that is right, one that says the opposite, and one that is three times too sure but calibrated."""
        predictor, rng = SurvivalPredictor(3), np.random.default_rng(1)
        predictor.temperatures = [3.0, 3.0, 3.0] if sharpness == 3 else None
        for _ in range(300):
            logits = rng.normal(0, 1.5, (1, 3))
            stood = 0
            while stood < 3 and rng.random() < 1 / (1 + np.exp(-logits[0, stood])):
                stood += 1
            signals = {"logits": sharpness * logits, "max_probs": np.full((1, 3), 0.5)}
            survival = predictor.survival(signals)
            assert (np.diff(survival) <= 0).all()
            predictor.learn(signals, [0], [min(stood + 1, 3)], [stood])
        assert predictor.in_use == used

    def test_a_head_that_is_sure_and_wrong_is_believed_for_few_rounds(self):
        predictor, signals = SurvivalPredictor(3), {"logits": np.full((1, 3), 2.0), "max_probs": np.full((1, 3), 0.4)}
        used = []
        for _ in range(4):
            predictor.survival(signals)
            used.append(predictor.in_use)
            predictor.learn(signals, [0], [1], [0])
        # Two nats, which a refused draft of 88% and one of 40% do not make, and two of each do.
        assert used == ["head", "head", "estimate", "estimate"]

    def test_who_comes_later_has_to_show_it(self):
        predictor = SurvivalPredictor(1)
        signals = {"logits": np.zeros((1, 1)), "max_probs": np.full((1, 1), 0.5)}
        for _ in range(100):
            predictor.survival(signals)
            predictor.learn(signals, [0], [1], [0])
        before = predictor.in_use
        predictor.temperatures = [0.02]
        for stood in (0, 0, 0):
            predictor.survival(signals)
            assert predictor.in_use == before
            predictor.learn(signals, [0], [1], [stood])

    def test_a_head_that_is_as_good_stays(self):
        predictor, rng = SurvivalPredictor(1), np.random.default_rng(0)
        for _ in range(200):
            signals = {"logits": np.zeros((1, 1)), "max_probs": np.full((1, 1), 0.5)}
            predictor.survival(signals)
            assert predictor.in_use == "head"
            predictor.learn(signals, [0], [1], [int(rng.random() < 0.5)])

    def test_without_signals_nobody_can_tell(self):
        predictor = SurvivalPredictor(3)
        assert predictor.survival({}) is None

    def test_lookup_learns_how_often_it_hits(self):
        predictor, signals = SurvivalPredictor(4), certain_signals(1, 4)
        for _ in range(40):
            predictor.learn(signals, [0], [4], [4])
        assert predictor.survival(signals)[0, -1] > 0.5
        for _ in range(200):
            predictor.learn(signals, [0], [1], [0])
        assert predictor.survival(signals)[0, 0] < 0.4


class TestForecast:
    def test_rates_follow_the_rounds(self):
        forecast = Forecast(3)
        before = forecast.rates()
        for _ in range(100):
            forecast.learn([2], [1])
        rates = forecast.rates()
        assert before == [before[0]] * 3
        assert rates[0] > 0.9 and rates[1] < 0.1
        # A slot that was never judged goes with the others.
        assert 0.4 < rates[2] < 0.6

    def test_a_batch_tells_what_its_rows_do_one_by_one(self):
        judged, stood = [3, 0, 2, 1, 3], [3, 0, 1, 1, 2]
        at_once, one_by_one, rng = Forecast(3), Forecast(3), np.random.default_rng(2)
        predictors = SurvivalPredictor(3), SurvivalPredictor(3)
        for _ in range(4):
            # What an estimator is fitted to changes it between two rows.
            signals = {"logits": rng.normal(0, 1, (6, 3))}
            at_once.learn(judged, stood)
            predictors[0].learn(signals, [0, 1, 2, 4, 5], judged, stood)
            for row, num_judged, num_stood in zip([0, 1, 2, 4, 5], judged, stood, strict=True):
                one_by_one.learn([num_judged], [num_stood])
                predictors[1].learn(signals, [row], [num_judged], [num_stood])
        assert at_once.rates() == pytest.approx(one_by_one.rates(), rel=1e-12)
        assert predictors[0]._losses == pytest.approx(predictors[1]._losses, rel=1e-12)
        assert predictors[0]._weight == pytest.approx(predictors[1]._weight, rel=1e-12)

    def test_gains_are_those_of_the_likeliest_slots(self):
        forecast = Forecast(2)
        # So many that what is believed beforehand is forgotten.
        forecast.note([[0.9, 0.8], [0.3, 0.1]] * 32)
        assert forecast.gains(2, 2) == pytest.approx([0, 0.9, 1.7, 2.0, 2.1])
        # Twice as many rows are like twice as many blocks.
        assert forecast.gains(4, 2) == pytest.approx([0, 0.9, 1.8, 2.6, 3.4, 3.7, 4.0, 4.1, 4.2])
        assert forecast.gains(2, 1) == pytest.approx([0, 0.9, 1.2])

    def test_gains_are_made_again_when_an_eighth_of_the_blocks_is_new(self):
        forecast = Forecast(2)
        before = forecast.gains(1, 2).tolist()
        forecast.note([[0.1, 0.01]])
        assert forecast.gains(1, 2).tolist() == before
        forecast.note([[0.1, 0.01]] * 2)
        assert forecast.gains(1, 2)[-1] < before[-1]

    def test_slots_that_were_not_picked_go_on_as_before(self):
        forecast = Forecast(3)
        forecast.note([[0.5]] * 64)
        assert forecast.gains(1, 3)[-1] == pytest.approx(0.5 * (1 + 0.6 + 0.36))
