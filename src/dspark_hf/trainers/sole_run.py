"""One run a folder: two that write to the same one would mix their checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from dspark_hf.files import sole_writer

# Folders that a run of this process has already.
_HELD: set[Path] = set()


@contextmanager
def sole_run(folder: str | Path) -> Iterator[None]:
    """Hold a run's `folder`, which is made where it is missing. All processes of a run are one writer.

    Raises:
        `ValueError`: If another run holds it; in every process.
    """
    place = Path(folder).resolve()
    if place in _HELD:
        yield
        return
    lock, refusal = None, None
    if PartialState().is_main_process:
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = sole_writer(place)
        except (OSError, ValueError) as error:
            refusal = str(error)
    # The others must not wait for one that has given up.
    (refusal,) = broadcast_object_list([refusal])
    if refusal is not None:
        raise ValueError(refusal)
    _HELD.add(place)
    try:
        yield
    finally:
        _HELD.discard(place)
        if lock is not None:
            lock.release()
