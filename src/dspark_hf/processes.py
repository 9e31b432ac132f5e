"""The end of processes that work together.

A gloo thread drops a collective's tensors shortly after the collective is over, and needs Python for that. Where the
interpreter is already ending by then, the process aborts ("terminate called without an active exception"), and the
launcher reports a failed run.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def end_in_order() -> Iterator[None]:
    """A block after which this process ends: it waits for the others, and takes its process group down.

    After an exception it waits for nobody, since the others may never come, but takes the group down as well: whoever
    waits for this process then fails at once, and not after the group's timeout. Without a group nothing happens.

    Example:

        with end_in_order():
            trainer.train()
    """
    try:
        yield
        if _has_group():
            from accelerate import PartialState

            PartialState().wait_for_everyone()
    finally:
        if _has_group():
            sys.modules["torch.distributed"].destroy_process_group()
            # A wrapped model in a cycle, a trainer's, keeps the group and its threads until the interpreter ends.
            gc.collect()


def _has_group() -> bool:
    # Most commands need no torch, whose import takes seconds.
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
