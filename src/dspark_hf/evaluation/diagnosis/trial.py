"""How many drafts stand when a drafter is read in some way.

At places of the target's own answers a block is drafted, with the answer's tokens in front of each slot, and compared
with how the answer goes on. No decoding: each reading costs a few passes of the drafter.

Shapes: A places, n slots, k candidates.
"""

from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from dspark_hf.evaluation.diagnosis.adapters import adapter_off
from dspark_hf.evaluation.diagnosis.reading import Reading, read_as
from dspark_hf.evaluation.diagnosis.texts import Text, Texts


@dataclass(frozen=True)
class Trial:
    """What became of the blocks of one reading.

    Args:
        stands (`numpy.ndarray` of shape `(places, slots)`): Whether each slot is right, given the answer before it.
        known (`numpy.ndarray` of the same shape): Whether the answer goes on that far.
        is_finite (`bool`): Whether all scores were numbers.
    """

    stands: numpy.ndarray
    known: numpy.ndarray
    is_finite: bool

    @property
    def first_rate(self) -> float:
        """How often slot 1 is right."""
        return float(self.stands[:, 0].mean())

    def accepted(self, num_slots: int) -> numpy.ndarray:
        """How many drafts of the first `num_slots` slots would stand, at each place, `(places,)`."""
        return self.stands[:, :num_slots].cumprod(1).sum(1)

    @property
    def mean_accepted(self) -> float:
        """Drafts that stand on average, of all slots."""
        return float(self.accepted(self.stands.shape[1]).mean())

    @property
    def num_slots(self) -> int:
        """Slots of a block."""
        return self.stands.shape[1]

    @property
    def num_places(self) -> int:
        """Blocks that were drafted."""
        return self.stands.shape[0]


@torch.no_grad()
def try_reading(drafter, reading: Reading, texts: Texts) -> Trial:
    """Draft at every place of the texts.

    Args:
        drafter ([`DraftModel`]): The drafter, bound to the target; perhaps in a `PeftModel`.
        reading ([`Reading`]): How it is read.
        texts ([`Texts`]): The answers.

    Returns:
        [`Trial`].
    """
    model = read_as(drafter, reading)
    features = texts.features(model.config.target_layer_ids if reading.taps is None else reading.taps)
    with adapter_off(drafter, reading.drafter_adapter is False):
        parts = [_try(model, text, one) for text, one in zip(texts.texts, features, strict=True)]
    stands, known, finite = zip(*parts, strict=True)
    return Trial(numpy.concatenate(stands), numpy.concatenate(known), all(finite))


def _try(model, text: Text, features: Tensor) -> tuple[numpy.ndarray, numpy.ndarray, bool]:
    ids = text.ids.to(model.device)
    anchors = torch.tensor(text.anchors, device=ids.device)
    state = model.start(len(anchors))
    before = features[:, : text.anchors[-1]].expand(len(anchors), -1, -1)
    # An anchor's own features are not known yet.
    model.extend(state, before, text.anchors, ids[:, : text.anchors[-1]].expand(len(anchors), -1))
    stands, known, finite = [], [], []

    def follow(logits: Tensor, token_ids: Tensor, drafted_ids: Tensor) -> tuple[Tensor, None]:
        at = anchors + 1 + drafted_ids.shape[1]
        is_known, at = at < ids.shape[1], at.clamp_max(ids.shape[1] - 1)
        is_token = token_ids == ids[0, at].unsqueeze(1)  # [A, k]
        places = is_token.int().argmax(-1)
        best = logits.max(-1).indices == places
        stands.append(is_known & is_token.any(-1) & best & logits.isfinite().all(-1))
        known.append(is_known)
        finite.append(bool(logits.isfinite().all()))
        return places, None

    model.propose(state, ids[0, anchors], follow)
    return torch.stack(stands, 1).cpu().numpy(), torch.stack(known, 1).cpu().numpy(), all(finite)
