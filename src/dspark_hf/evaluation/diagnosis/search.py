"""Which reading of a drafter fits: changes one by one, on top of each other, and in pairs where none helps alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy

from dspark_hf.evaluation.diagnosis.reading import Reading
from dspark_hf.evaluation.diagnosis.trial import Trial

# A change helps if drafts stand more often by so much, in standard errors (of some thirty changes that are tried, none
# gets there by chance) and as a factor of what stands as the config says.
_ERRORS, _FACTOR, _LEAST = 4.0, 1.2, 0.08
# Answers differ between forms of prompts and with the adapter, so these must do much more to be blamed.
_FACTOR_OF_TEXTS = 2.5
# A drafter that fits has slot 1 right at least so often.
FITS = 0.2
_MOST_CHANGES = 3


@dataclass
class Search:
    """What was tried.

    Args:
        run (`Callable`): Tries a reading.
        tried (`dict[Reading, Trial]`): What came of it.
    """

    run: Callable[[Reading], Trial]
    tried: dict[Reading, Trial] = field(default_factory=dict)

    def trial(self, reading: Reading) -> Trial:
        """The trial of a `reading`, made once."""
        if reading not in self.tried:
            self.tried[reading] = self.run(reading)
        return self.tried[reading]

    def best(self, changes: Sequence[Reading]) -> Reading:
        """The reading under which most drafts stand, with no change that does not help.

        Args:
            changes (`Sequence[Reading]`): Single changes.
        """
        found = Reading()
        for _ in range(_MOST_CHANGES):
            singles = [found.with_other(one) for one in changes if not one.changes & found.changes]
            better = [one for one in singles if self.helps(one, found)]
            if not better and not found.changes and self.trial(found).first_rate < FITS:
                # Lengths and single taps spoil only some of the drafts, so that one of two changes helps alone.
                grave = [one for one in changes if one.is_grave]
                pairs = [
                    one.with_other(other) for one, other in combinations(grave, 2) if not one.changes & other.changes
                ]
                better = [one for one in pairs if self.helps(one, found) and self.trial(one).first_rate >= FITS]
            if not better:
                return found
            found = max(better, key=lambda one: self._rank(one))
        return found

    def helps(self, reading: Reading, over: Reading) -> bool:
        """Whether a `reading` is better than the reading `over` beyond doubt, on the slots that both have."""
        new, old = self.trial(reading), self.trial(over)
        num_slots = min(new.num_slots, old.num_slots)
        ours, theirs = new.accepted(num_slots), old.accepted(num_slots)
        factor = _FACTOR
        if reading.keeps_texts == over.keeps_texts and len(ours) == len(theirs):
            gain = ours - theirs
            error = gain.std() / math.sqrt(len(gain))
        else:
            gain = numpy.array([ours.mean() - theirs.mean()])
            error = math.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
            factor = _FACTOR_OF_TEXTS
        is_large = ours.mean() >= factor * theirs.mean() and gain.mean() >= _LEAST
        return bool(is_large and gain.mean() > _ERRORS * error)

    def _rank(self, reading: Reading) -> tuple[float, float]:
        trial = self.trial(reading)
        return trial.mean_accepted, trial.first_rate
