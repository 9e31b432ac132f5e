"""What a drafter would have drafted behind every token of answers: how sure it was, and how much of it stands.

Decisions about lengths are replayed on such records, and confidences are calibrated with them.
Shapes: P places of an answer, n slots, k candidates, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dspark_hf.data.cache.manifest import weights_digest
from dspark_hf.data.features import TargetFeatures
from dspark_hf.evaluation.running.journal import Journal
from dspark_hf.evaluation.running.runs import DecodingSettings, generate_plain
from dspark_hf.evaluation.tasks.prompts import encode_prompts
from dspark_hf.modeling.drafting import PickFn
from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.verify import draw

# Places drafted for at once.
_CHUNK = 32
# As generate() drafts by default.
_NUM_CANDIDATES = 512


@dataclass
class BlockRecord:
    """The blocks behind each token of an answer but its last.

    Attributes:
        lens (`list[int]`): Drafts that stand, of each block.
        known (`list[int]`): Slots of each block that the answer is long enough to judge.
        max_probs (`list[list[float]]`): Largest probability of each slot's distribution.
        confidence_logits (`list[list[float]]`, *optional*): The confidence head's logits, if there is one.
    """

    lens: list[int]
    known: list[int]
    max_probs: list[list[float]]
    confidence_logits: list[list[float]] | None = None


@torch.no_grad()
def record_blocks(
    target: Any, drafter: Any, prompt: Sequence[int], answer: Sequence[int], temperature: float, seed: int = 0
) -> BlockRecord:
    """Draft at every place of an answer and tell what stands, as if each place had been a round's anchor.

    In greedy decoding a slot stands while drafts equal the answer. When sampling, the answer's token y stands with
    probability min(1, q(y) / p(y)), and where it does not the draft is one of (q - p)+: together that is acceptance by
    min(1, p / q) of drafts from q, seen from the token that came out. Behind the first that falls, drafts are q's.

    Args:
        target (`PreTrainedModel`): The model that gave the answer.
        drafter ([`DSparkModel`]): Its drafter, bound to it.
        prompt (`Sequence[int]`): Tokens before the answer.
        answer (`Sequence[int]`): The answer.
        temperature (`float`): That it was sampled at; 0 for greedy decoding.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Returns:
        [`BlockRecord`].
    """
    ids = torch.tensor([[*prompt, *answer]], device=target.device)
    features, last = TargetFeatures(target, drafter.config.target_layer_ids)(ids)
    scores = None
    if temperature > 0:
        # Row i has what is behind token i of prompt and answer, from the first token of the answer on.
        scores = target.get_output_embeddings()(last[0, len(prompt) : -1]).float() / temperature
    record = BlockRecord([], [], [], [] if drafter.config.enable_confidence_head else None)
    num_slots, generator = drafter.config.num_slots, torch.Generator(target.device).manual_seed(seed)
    for start in range(len(prompt), ids.shape[1] - 1, _CHUNK):
        anchors = torch.arange(start, min(start + _CHUNK, ids.shape[1] - 1), device=ids.device)
        state = drafter.start(len(anchors))
        # An anchor's own features are not known yet.
        counts = anchors.tolist()
        read = ids[:, : counts[-1]].expand(len(anchors), -1)
        drafter.extend(state, features[:, : counts[-1]].expand(len(anchors), -1, -1), counts, read)
        stands: list[Tensor] = []
        truth = _Truth(ids[0], scores, len(prompt), temperature, generator)
        proposal = drafter.propose(state, ids[0, anchors], _follow(truth, anchors, stands), num_slots, _NUM_CANDIDATES)
        record.lens += torch.stack(stands, 1).long().cumprod(1).sum(1).tolist()
        record.known += [min(num_slots, ids.shape[1] - 1 - place) for place in counts]
        record.max_probs += proposal.max_probs.tolist()
        if record.confidence_logits is not None:
            record.confidence_logits += proposal.confidence_logits.float().tolist()
    return record


@dataclass
class _Truth:
    """What the target did: tokens, and its scores behind each from place `begin` on when it sampled."""

    ids: Tensor
    scores: Tensor | None
    begin: int
    temperature: float
    generator: torch.Generator


def _follow(truth: _Truth, anchors: Tensor, stands: list[Tensor]) -> PickFn:
    """A pick that drafts as generation does, and notes for each slot whether the draft is the answer's token."""

    def pick(logits: Tensor, token_ids: Tensor, drafted_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        at = anchors + 1 + drafted_ids.shape[1]
        is_open, at = at < len(truth.ids), at.clamp_max(len(truth.ids) - 1)
        if stands:
            is_open = is_open & torch.stack(stands).all(0)
        if truth.scores is None:
            places = logits.max(-1).indices
            drafted = token_ids.gather(1, places[:, None])[:, 0]
            stands.append(is_open & (drafted == truth.ids[at]))
            return places, None
        probs = (logits.float() / truth.temperature).softmax(-1)
        is_token = token_ids == truth.ids[at].unsqueeze(1)
        target_probs = truth.scores[at - 1 - truth.begin].softmax(-1)
        candidates = Candidates(token_ids, probs)
        token_p = target_probs.gather(1, truth.ids[at].unsqueeze(1))[:, 0]
        uniform = torch.rand(len(at), generator=truth.generator, device=at.device)
        stood = is_open & (uniform * token_p < candidates.prob_of(truth.ids[at]))
        # Where the answer's token is not drafted, something that q gives more often than p is.
        surplus = (probs - target_probs.gather(1, token_ids)).clamp_min(0)
        surplus = torch.where(surplus.sum(-1, keepdim=True) > 0, surplus, probs)
        drawn = draw(torch.where(is_open.unsqueeze(1), surplus, probs), truth.generator)
        stands.append(stood)
        return torch.where(stood, is_token.int().argmax(-1), drawn.clamp_max(probs.shape[-1] - 1)), probs

    return pick


def record_answers(
    target: Any,
    drafter: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    settings: DecodingSettings,
    *,
    batch_size: int = 16,
    seed: int = 0,
    journal: str | Path | None = None,
    resume: bool = False,
    report: Callable[[int], None] = lambda num_done: None,
) -> list[BlockRecord]:
    """Let the target answer prompts and record the drafter's blocks along the answers.

    Args:
        target (`PreTrainedModel`): The model.
        drafter ([`DSparkModel`]): Its drafter, bound to it.
        tokenizer (`PreTrainedTokenizerBase`): The target's.
        prompts (`Sequence`): What to ask, see [`encode_prompts`].
        settings ([`DecodingSettings`]): Length and temperature of the answers.
        batch_size (`int`, *optional*, defaults to 16): Answers made at once.
        seed (`int`, *optional*, defaults to 0): Of the first batch; each further one adds 1.
        journal (`str` or `Path`, *optional*): File that keeps what is done, see [`Journal`]; the caller removes it.
        resume (`bool`, *optional*, defaults to `False`): Whether to go on with a journal that is there.
        report (`Callable`, *optional*): Called with the number of prompts done.

    Returns:
        `list[BlockRecord]`: One for each answer of two tokens and more, in order.

    Raises:
        `ValueError`: If there is a journal and `resume` is off, or it is made otherwise or damaged.
    """
    made_with = {
        "target": weights_digest(target), "drafter": weights_digest(drafter), "dtype": str(target.dtype), "seed": seed,
        "settings": asdict(settings), "num_prompts": len(prompts), "batch_size": batch_size,
    }  # fmt: skip

    def batch(start: int) -> list[dict[str, Any]]:
        inputs = encode_prompts(prompts[start : start + batch_size], tokenizer)
        answers = generate_plain(target, inputs, settings, seed=seed + start // batch_size).ids
        records = []
        for ids, mask, answer in zip(inputs["input_ids"], inputs["attention_mask"], answers, strict=True):
            if len(answer) > 1:
                prompt = ids[mask.bool()].tolist()
                records.append(asdict(record_blocks(target, drafter, prompt, answer, settings.temperature, seed)))
        return records

    records: list[BlockRecord] = []
    with Journal(journal, made_with, resume=resume) as kept:
        for start in range(0, len(prompts), batch_size):
            records += [BlockRecord(**one) for one in kept.part(f"prompts from {start}", partial(batch, start))]
            report(min(start + batch_size, len(prompts)))
    return records
