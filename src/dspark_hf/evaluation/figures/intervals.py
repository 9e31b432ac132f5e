"""How far a figure may be off: percentile bootstrap."""

from collections.abc import Callable, Sequence

import numpy

_NUM_RESAMPLES, _CONFIDENCE = 1000, 0.95


def bootstrap(
    figure: Callable[[numpy.ndarray], float], samples: Sequence[Sequence[float] | float]
) -> list[float] | None:
    """The interval that holds a figure in 95% of the cases, by drawing samples anew 1,000 times.

    Args:
        figure (`Callable`): The figure of some samples, whose first dimension they are.
        samples (`Sequence`): One entry a sample: a number, or several that belong together. Prompts, not rounds, since
            rounds of a prompt are alike.

    Returns:
        `list[float]`: Its two ends; `None` of fewer than two samples.
    """
    values = numpy.asarray(samples, dtype=float)
    if len(values) < 2:
        return None
    generator = numpy.random.default_rng(0)
    draws = generator.integers(0, len(values), (_NUM_RESAMPLES, len(values)))
    figures = [figure(values[draw]) for draw in draws]
    tail = 50 * (1 - _CONFIDENCE)
    low, high = numpy.nanpercentile(figures, (tail, 100 - tail))
    return [float(low), float(high)]
