"""What happens around the steps of a drafter's training."""

import time

from transformers import TrainerCallback

from dspark_hf.data.cache import RollingFeatures
from dspark_hf.data.collator import DraftCollator


class AnchorEpoch(TrainerCallback):
    """Gives each epoch its own anchors, the same ones after a resume.

    Args:
        collator ([`DraftCollator`]): What samples the anchors.
    """

    def __init__(self, collator: DraftCollator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.set_epoch(int(state.epoch or 0))


class RollingEpoch(TrainerCallback):
    """Tells a rolling cache when the data are gone through again.

    Args:
        features ([`RollingFeatures`]): The cache.
    """

    def __init__(self, features: RollingFeatures):
        self.features = features

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.features.begin_epoch()


class StepClock(TrainerCallback):
    """Wall time of training steps, data loading included, evaluation and saving left out."""

    def __init__(self):
        self.seconds = self.total_seconds = 0.0
        self.num_steps = 0
        self._since = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._since = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.seconds += now - self._since
        self.total_seconds += now - self._since
        self.num_steps += 1
        self._since = now

    def on_evaluate(self, args, state, control, **kwargs):
        self._since = time.perf_counter()

    on_save = on_evaluate

    def take(self) -> float:
        """Seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def eta_seconds(self, num_left: int) -> float:
        """Seconds that `num_left` steps will take, by the mean so far."""
        return num_left * self.total_seconds / max(self.num_steps, 1)


class LatestEvaluation(TrainerCallback):
    """Figures of the latest evaluation, and the step that it was made at; -1 before the first."""

    def __init__(self):
        self.step, self.metrics = -1, {}

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Keep the `metrics` of an evaluation, and its step."""

        self.step, self.metrics = state.global_step, dict(metrics or {})
