"""How many drafts stand when a drafter is read in some way.

At places of the target's own answers a block is drafted, with the answer's tokens in front of each slot, and compared
with how the answer goes on. No decoding: each reading costs a few passes of the drafter.

Shapes: A places, n slots, k candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dspark_hf.evaluation.diagnosis.adapters import adapter_off
from dspark_hf.evaluation.diagnosis.reading import Reading, read_as
from dspark_hf.evaluation.diagnosis.texts import Text, Texts
from dspark_hf.modeling import DraftModel
from dspark_hf.modeling.context import DraftState

_MOST_SCORES = 2**28  # of a pass: half a gigabyte in bfloat16


@dataclass(frozen=True)
class Trial:
    """What became of the blocks of one reading.

    Args:
        stands (`numpy.ndarray` of shape `(places, slots)`): Whether each slot is right, given the answer before it.
        likely (`numpy.ndarray` of the same shape): How likely the drafter holds the answer's token there, 0 to 1.
        drafts, answers (`numpy.ndarray` of shape `(places,)`): The first slot's drafted token, and the answer's.
        is_finite (`bool`): Whether all scores were numbers.
    """

    stands: numpy.ndarray
    likely: numpy.ndarray
    drafts: numpy.ndarray
    answers: numpy.ndarray
    is_finite: bool

    @property
    def first_rate(self) -> float:
        """How often slot 1 is right."""
        return float(self.stands[:, 0].mean())

    @property
    def chance(self) -> float:
        """How often slot 1 would be right if its draft did not depend on the place: what common tokens give."""
        return float((self.drafts[:, None] == self.answers[None]).mean())

    @property
    def skill(self) -> float:
        """How much of what chance leaves slot 1 gets right, at most 1; 0 where that may be chance, too."""
        rate, chance = self.first_rate, self.chance
        error = (rate * (1 - rate) / self.num_places) ** 0.5
        return (rate - chance) / (1 - chance) if rate > chance + 3 * error and chance < 1 else 0.0

    def accepted(self, num_slots: int) -> numpy.ndarray:
        """How many drafts of the first `num_slots` slots would stand, at each place, `(places,)`."""
        return self.stands[:, :num_slots].cumprod(1).sum(1)

    def expected(self, num_slots: int) -> numpy.ndarray:
        """How many of the first `num_slots` would, were they drawn from what the drafter holds likely, `(places,)`.

        It tells small differences from luck with fewer places than [`Trial.accepted`] does.
        """
        return self.likely[:, :num_slots].cumprod(1).sum(1)

    @property
    def mean_accepted(self) -> float:
        """Drafts that stand on average, of all slots."""
        return float(self.accepted(self.num_slots).mean())

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
    pairs = list(zip(texts.texts, features, strict=True))
    num_scores = model.config.num_slots * model.config.vocab_size * max(len(text.anchors) for text in texts.texts)
    num_texts = max(1, _MOST_SCORES // num_scores)
    with adapter_off(drafter, reading.drafter_adapter is False):
        parts = [_try(model, *zip(*pairs[at : at + num_texts], strict=True)) for at in range(0, len(pairs), num_texts)]
    stands, likely, drafts, answers = (numpy.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Trial(stands, numpy.nan_to_num(likely), drafts, answers, bool(numpy.isfinite(likely).all()))


def _try(model: DraftModel, texts: Sequence[Text], features: Sequence[Tensor]) -> tuple[numpy.ndarray, ...]:
    """Stands, likely, drafts and answers of some texts; what is likely is no number where the scores are none."""
    device = model.device
    ids = pad_sequence([text.ids[0] for text in texts], batch_first=True).to(device)
    rows = torch.tensor([row for row, text in enumerate(texts) for _ in text.anchors], device=device)
    anchors = torch.tensor([anchor for text in texts for anchor in text.anchors], device=device)
    ends = torch.tensor([text.ids.shape[1] for text in texts], device=device)[rows]
    stands, likely, drafts = [], [], []

    def follow(logits: Tensor, token_ids: Tensor, drafted_ids: Tensor) -> tuple[Tensor, None]:
        at = anchors + 1 + drafted_ids.shape[1]
        is_token = token_ids == ids[rows, at.clamp_max(ids.shape[1] - 1)].unsqueeze(1)  # [A, k]
        places, best = is_token.int().argmax(-1), logits.max(-1).indices
        is_there, is_finite = (at < ends) & is_token.any(-1), logits.isfinite().all(-1)
        stands.append(is_there & (best == places) & is_finite)
        scores = logits.float()
        probs = (scores.gather(1, places.unsqueeze(1)).squeeze(1) - scores.logsumexp(-1)).exp()
        likely.append(torch.where(is_finite, probs * is_there, torch.nan))
        drafts.append(token_ids.expand_as(logits).gather(1, best.unsqueeze(1)).squeeze(1))
        return places, None

    context = _context(model, texts, features, ids, rows.tolist(), anchors.tolist())
    model.propose(context, ids[rows, anchors], follow)
    stacked = (torch.stack(stands, 1), torch.stack(likely, 1), drafts[0], ids[rows, anchors + 1])
    return tuple(one.cpu().numpy() for one in stacked)


def _context(
    model: DraftModel,
    texts: Sequence[Text],
    features: Sequence[Tensor],
    ids: Tensor,
    rows: list[int],
    anchors: list[int],
) -> DraftState:
    """What stands before each anchor, a row each; an anchor's own features are not known yet."""
    lens = [text.anchors[-1] for text in texts]
    ids = ids[:, : max(lens)]
    features = pad_sequence([one[0] for one in features], batch_first=True)[:, : max(lens)]
    state = model.start(len(texts))
    model.extend(state, features, lens, ids)
    if state.held_lens == lens:
        # Read once for all anchors of a text.
        state.select(rows)
        state.crop(anchors)
        return state
    # What has left a window cannot come back.
    state = model.start(len(rows))
    model.extend(state, features[rows], anchors, ids[rows])
    return state
