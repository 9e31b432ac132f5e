"""Ways of generation that go in turns, a step of each at a time: what else the machine does meets them alike."""

import time
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet


class Turns:
    """Runs functions beside each other in one thread, of which each hands over to the next at every step.

    `time.perf_counter` stands still for those that wait, so what a function measures by it is its own time. The caches
    of the processor are shared, as ever.
    """

    def __init__(self) -> None:
        self._left: list[greenlet] = []
        self._away: dict[greenlet, float] = {}
        self._clock = time.perf_counter

    def step(self, *_: Any) -> None:
        """Hand over to the next, and go on when it is one's turn again; a hook, say, that is called in each step."""
        me = getcurrent()
        if me not in self._left or len(self._left) == 1:
            return
        began = self._clock()
        self._left[(self._left.index(me) + 1) % len(self._left)].switch()
        self._away[me] += self._clock() - began

    def run(self, functions: dict[str, Callable[[], Any]]) -> dict[str, Any]:
        """Run the functions to their ends.

        Args:
            functions (`dict[str, Callable]`): Each by its name.

        Returns:
            `dict[str, Any]`: What they returned.
        """
        results: dict[str, Any] = {}
        place = 0

        def work(name: str) -> None:
            nonlocal place
            results[name] = functions[name]()
            place = self._left.index(getcurrent())
            self._left.pop(place)

        self._left = [greenlet(lambda name=name: work(name)) for name in functions]
        self._away = dict.fromkeys(self._left, 0.0)
        time.perf_counter = lambda: self._clock() - self._away.get(getcurrent(), 0.0)
        try:
            # One that has ended comes back here, and the one behind it goes on.
            while self._left:
                self._left[place % len(self._left)].switch()
        finally:
            time.perf_counter = self._clock
            self._left = []
        return results
