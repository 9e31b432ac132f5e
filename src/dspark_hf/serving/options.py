"""What a request of a batch may ask for of its own."""

from dataclasses import dataclass
from typing import Any

# Options of sampling that a request may have in place of those of all, and their types.
REQUEST_OPTIONS = {
    "do_sample": bool,
    "temperature": (int, float),
    "top_k": int,
    "top_p": (int, float),
    "min_p": (int, float),
}


@dataclass(frozen=True)
class RequestOptions:
    """A request's own options.

    Attributes:
        sampling (`tuple[tuple[str, Any], ...]`): Some of `REQUEST_OPTIONS` with their values, by name.
        seed (`int`, *optional*): Of its draws; without one they are drawn with those of all others.
        stop_strings (`tuple[str, ...]`): Texts that end its answer.
    """

    sampling: tuple[tuple[str, Any], ...] = ()
    seed: int | None = None
    stop_strings: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: dict[str, Any]) -> "RequestOptions":
        """Options by their names.

        Args:
            given (`dict`): They. A `temperature` of 0 takes the most likely tokens.

        Raises:
            `ValueError`: If one is unknown, or of the wrong type.
        """
        given = dict(given)
        seed, stop = given.pop("seed", None), given.pop("stop_strings", None)
        if seed is not None and not (_is_int(seed) and abs(seed) < 2**63):
            raise ValueError(f"seed must be a whole number of 64 bits, got {seed!r}.")
        stop = (stop,) if isinstance(stop, str) else tuple(stop or ())
        if not all(isinstance(text, str) and text for text in stop):
            raise ValueError(f"stop_strings must be a text, or texts that are not empty, got {list(stop)!r}.")
        for name, value in given.items():
            kinds = REQUEST_OPTIONS.get(name)
            if kinds is None or not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool):
                known = (*REQUEST_OPTIONS, "seed", "stop_strings")
                raise ValueError(
                    f"A request may ask for {', '.join(known)} of its own, got {name}={value!r}. Leave it out, or "
                    "give it to all requests in generation_config."
                )
        if given.get("temperature") == 0:
            # As servers are asked for the most likely tokens.
            given = {"do_sample": False}
        return cls(tuple(sorted(given.items())), seed, stop)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
