"""The search over readings, on trials whose rates are known."""

from dataclasses import replace

import numpy
import pytest
import torch

from dspark_hf.evaluation.diagnosis.reading import Reading
from dspark_hf.evaluation.diagnosis.search import FITS, Search
from dspark_hf.evaluation.diagnosis.trial import Trial

TAPS, SLOTS, LENGTH, RAW = (Reading(taps=(0, 1)), Reading(from_anchor=False), Reading(block_size=7),
                            Reading(template=False))  # fmt: skip
CHANGES = [TAPS, Reading(taps=(2, 3)), SLOTS, LENGTH, Reading(block_size=3), RAW]
NUM_PLACES = 300


def search(rate_of, seed=0):
    """A search where `rate_of(reading)` is how often a slot is right; the same places are easy for all readings."""
    generator = numpy.random.default_rng(seed)
    luck = generator.random((NUM_PLACES, 4))

    def run(reading):
        likely = numpy.clip(rate_of(reading) + generator.normal(0, 0.2, luck.shape), 0, 1)
        answers = generator.integers(0, 50, NUM_PLACES)
        return Trial(luck < rate_of(reading), likely, answers, generator.permutation(answers), True)

    return Search(run)


def rates(table, otherwise):
    """Rates by sets of changes."""
    return lambda reading: table.get(frozenset(reading.changes), otherwise)


def test_one_change():
    assert search(rates({frozenset(): 0.2, frozenset({"taps"}): 0.5}, 0.1)).best([TAPS, SLOTS, LENGTH]) == TAPS


@pytest.mark.parametrize("alone", [0.05, 0.25])
def test_two_changes_of_which_none_need_help_alone(alone):
    both = frozenset({"taps", "from_anchor"})
    assert search(rates({both: 0.6}, alone)).best([TAPS, SLOTS, LENGTH, RAW]) == TAPS.with_other(SLOTS)


def test_what_helped_at_first_is_taken_back():
    # Another length helps as long as slots are counted otherwise, and with both it makes no difference.
    table = {frozenset(): 0.1, frozenset({"block_size"}): 0.3, frozenset({"from_anchor"}): 0.25,
             frozenset({"block_size", "from_anchor"}): 0.6, frozenset({"from_anchor", "taps"}): 0.6}  # fmt: skip
    table[frozenset({"block_size", "from_anchor", "taps"})] = 0.8
    assert search(rates(table, 0.1)).best(CHANGES[2:4]) == SLOTS.with_other(LENGTH)
    idle = {**table, frozenset({"from_anchor"}): 0.6}
    assert search(rates(idle, 0.1)).best(CHANGES[2:4]) == SLOTS


def test_what_overflows_once_another_fault_is_mended():
    wide, found = Reading(dtype=torch.float32), search(lambda reading: 0.6 if reading.taps == TAPS.taps else 0.4)
    run = found.run
    found.run = lambda reading: replace(
        run(reading if reading.dtype or not reading.taps else Reading(from_anchor=False)),
        is_finite=reading.dtype is not None or not reading.taps,
    )
    assert found.best([TAPS, SLOTS, wide]) == TAPS.with_other(wide)


def test_luck_is_not_blamed():
    for seed in range(30):
        assert not search(lambda reading: 0.4, seed).best(CHANGES).changes
        assert search(lambda reading: 0.03, seed).trial(Reading()).skill < FITS


def test_answers_that_are_easier_are_not_blamed():
    easier = rates({frozenset(): 0.35, frozenset({"template"}): 0.5}, 0.1)
    assert not search(easier).best(CHANGES).changes
    other = rates({frozenset(): 0.05, frozenset({"template"}): 0.5}, 0.05)
    assert search(other).best(CHANGES) == RAW


def test_common_tokens_are_no_skill():
    ones = numpy.ones(NUM_PLACES, dtype=int)
    always = Trial(numpy.ones((NUM_PLACES, 1), bool), numpy.ones((NUM_PLACES, 1)), ones, ones, True)
    assert always.first_rate == 1 and always.skill == 0
