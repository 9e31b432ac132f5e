"""Which reading of a drafter fits: a search over changes, each of which must help, and must be needed in the end."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from dspark_hf.evaluation.diagnosis.reading import Reading
from dspark_hf.evaluation.diagnosis.trial import Trial

# A change helps if more drafts stand with it by this factor and this number, and if more are expected to by so many
# standard errors: of some hundred readings that are tried none gets there by chance.
_FACTOR, _LEAST, _ERRORS = 1.1, 0.04, 4.0
# Answers differ between forms of prompts and with the adapter, so these must do much more to be blamed.
_FACTOR_OF_TEXTS = 2.5
# A drafter that fits has slot 1 right at least so often, beside what chance gives.
FITS = 0.2
_MOST_CHANGES = 3
_MOST_PROMISING = 5


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
        """The reading under which most drafts stand, with no change that is not needed.

        Changes are made, replaced and taken back one by one as long as that helps. Where none helps, two at once are
        tried. Of what was found every change is then taken back to see whether it is needed.

        Args:
            changes (`Sequence[Reading]`): Single changes.
        """
        found = self._from(Reading(), changes)
        wider = next((one for one in changes if one.dtype is not None), None)
        if wider is not None and not all(trial.is_finite for trial in self.tried.values()):
            # What mends another fault may be what overflows.
            other = self._from(found.with_other(wider), changes)
            found = other if self.helps(other, found) else found
        if not found.changes or self.trial(found).skill < FITS:
            start = self._best_of(self._pairs(changes), Reading())
            found = found if start is None else self._from(start, changes)
        return found

    def helps(self, reading: Reading, over: Reading) -> bool:
        """Whether a `reading` is better than the reading `over` beyond doubt, on the slots that both have."""
        num_slots = self._num_slots(reading, over)
        ours, theirs = (self.trial(one).accepted(num_slots).mean() for one in (reading, over))
        factor = _FACTOR if reading.texts == over.texts else _FACTOR_OF_TEXTS
        gain, error = self._gain(reading, over)
        return bool(ours >= factor * theirs and ours - theirs >= _LEAST and gain > _ERRORS * error)

    def _gain(self, reading: Reading, over: Reading) -> tuple[float, float]:
        """How many more drafts are expected to stand, and the standard error of that."""
        num_slots = self._num_slots(reading, over)
        ours, theirs = (self.trial(one).expected(num_slots) for one in (reading, over))
        if reading.texts == over.texts:
            # The same blocks: only what differs in each of them counts.
            gains = ours - theirs
            return float(gains.mean()), float(gains.std()) / math.sqrt(len(gains))
        error = math.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
        return float(ours.mean() - theirs.mean()), error

    def _num_slots(self, reading: Reading, over: Reading) -> int:
        """The slots that both have; of different answers the first: one that repeats itself has all right, or none."""
        return min(self.trial(one).num_slots for one in (reading, over)) if reading.texts == over.texts else 1

    def _from(self, found: Reading, changes: Sequence[Reading]) -> Reading:
        """Go from one reading to a better one as long as there is one, then take back what is not needed."""
        better: Reading | None = found
        while better is not None:
            found, better = better, self._best_of(_neighbours(better, changes), better)
        return self._needed(found)

    def _best_of(self, readings: Iterator[Reading], over: Reading) -> Reading | None:
        better = [one for one in dict.fromkeys(readings) if one != over and self.helps(one, over)]
        return max(better, key=lambda one: self._gain(one, over)[0], default=None)

    def _needed(self, found: Reading) -> Reading:
        """The reading without the changes that it does not need, the least needed first."""
        while found.changes:
            without = [found.without(name) for name in sorted(found.changes)]
            idle = [one for one in without if not self.helps(found, one)]
            if not idle:
                break
            found = min(idle, key=lambda one: self._gain(found, one)[0])
        return found

    def _pairs(self, changes: Sequence[Reading]) -> Iterator[Reading]:
        """Pairs of the most promising changes; all that spoil whole blocks, if the drafter fits in no way."""
        plain = Reading()
        ranked = sorted(changes, key=lambda one: -_in_errors(*self._gain(one, plain)))[:_MOST_PROMISING]
        if self.trial(plain).skill < FITS:
            # Lengths and single taps spoil only some of the drafts, so that one of two changes helps alone.
            ranked += [one for one in changes if one.is_grave and one not in ranked]
        return (one.with_other(other) for one, other in combinations(ranked, 2) if not one.changes & other.changes)


def _neighbours(found: Reading, changes: Sequence[Reading]) -> Iterator[Reading]:
    """Readings that differ from `found` in one thing."""
    for one in changes:
        if one.changes <= found.changes or len(found.changes) < _MOST_CHANGES:
            yield found.with_other(one)
    for name in sorted(found.changes):
        yield found.without(name)


def _in_errors(gain: float, error: float) -> float:
    return gain / max(error, 1e-9)
