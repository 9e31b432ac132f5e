"""Whether speculative output is the target's: coupled greedy runs, and chi-square tests of sampled ones."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from dspark_hf.evaluation.exactness.enumeration import chi_square_p_value, exact_joint
from dspark_hf.evaluation.exactness.oracle import OracleDrafter
from dspark_hf.evaluation.running.precision import PrecisionCopies
from dspark_hf.evaluation.running.ties import TieFinder
from dspark_hf.generation import SpeculationConfig

SAMPLING_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "warpers": {"temperature": 0.8, "top_k": 4, "top_p": 0.95, "min_p": 0.02},
    "penalty": {"repetition_penalty": 1.6, "temperature": 1.3},
    "prefix": {"no_repeat_ngram_size": 2, "sequence_bias": [[[2], 1.0], [[1, 3], -2.0]], "typical_p": 0.9},
}
_TIE = 1e-4  # logits of a tiny float32 model are uncertain by about 1e-6
_NUM_TOKENS = 3


@dataclass
class GreedyCheck:
    """Greedy output against plain `generate()`, both in float32.

    Args:
        num_prompts (`int`): Prompts compared.
        num_ties (`int`): Prompts that differ first where the target's two best scores are equal within rounding.
        differences (`list[dict]`): Every other difference; empty if the output is the target's.
        accepted_lens (`dict[int, int]`): How many rounds accepted so many drafts: what the check has seen.
    """

    num_prompts: int = 0
    num_ties: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)
    accepted_lens: Counter = field(default_factory=Counter)

    def __add__(self, other: "GreedyCheck") -> "GreedyCheck":
        return GreedyCheck(
            self.num_prompts + other.num_prompts,
            self.num_ties + other.num_ties,
            self.differences + other.differences,
            self.accepted_lens + other.accepted_lens,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able fields; `asdict` would count a Counter's items."""
        return {**vars(self), "accepted_lens": dict(sorted(self.accepted_lens.items()))}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "GreedyCheck":
        """Make one from the `fields` that [`as_dict`] gave, also where JSON has made text of numbers."""
        lens = Counter({int(length): count for length, count in fields["accepted_lens"].items()})
        return cls(**{**fields, "accepted_lens": lens})


@dataclass
class SamplingCheck:
    """Joint distribution of the first new tokens against its enumeration.

    Args:
        mode (`str`): Which of `SAMPLING_OPTIONS`.
        verification (`str`): How drafts were judged.
        num_candidates (`int`, *optional*): Candidates of a slot; all tokens if None.
        batch_size (`int`): Rows of a call.
        num_samples (`int`): Samples.
        p_value (`float`): Chance of samples that far from the exact distribution.
    """

    mode: str
    verification: str
    num_candidates: int | None
    batch_size: int
    num_samples: int
    p_value: float


def check_greedy(
    target: PreTrainedModel,
    drafter: Any,
    inputs: dict[str, Tensor],
    *,
    max_new_tokens: int = 24,
    speculation: SpeculationConfig | None = None,
    **options: Any,
) -> GreedyCheck:
    """Compare one batch, token for token.

    Args:
        target (`PreTrainedModel`): The target, in float32.
        drafter ([`DSparkModel`]): Its drafter; an [`OracleDrafter`] is told the plain output.
        inputs (`dict`): `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(batch, prompt)`).
        max_new_tokens (`int`, *optional*, defaults to 24): Most new tokens.
        speculation ([`SpeculationConfig`], *optional*): How to speculate.
        options: More options of `generate()`.

    Returns:
        [`GreedyCheck`].

    Raises:
        `ValueError`: If the target is not in float32.
    """
    if target.dtype != torch.float32:
        raise ValueError(f"Greedy output is compared in float32, got a target in {target.dtype}: load it in float32.")
    options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
    plain = target.generate(**inputs, **options, speculation=False)
    width = inputs["input_ids"].shape[1]
    prompts = [
        ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    if isinstance(drafter, OracleDrafter):
        drafter.texts = [prompt + row for prompt, row in zip(prompts, plain[:, width:].tolist(), strict=True)]
        drafter.pattern = range(drafter.config.num_slots + 1)
    ours = target.generate(**inputs, **options, assistant_model=drafter, speculation=speculation)
    check = GreedyCheck(num_prompts=len(plain), accepted_lens=Counter(drafter.last_stats.accepted_lens))
    if torch.equal(plain, ours):
        return check
    gaps = _score_gaps(target, inputs, options)
    ties = TieFinder(PrecisionCopies(target), torch.float32)
    # A row that is longer than another run's needs as much padding there.
    pad_id, num_new = target.generation_config.pad_token_id or 0, max(plain.shape[1], ours.shape[1]) - width
    plain, ours = (F.pad(ids[:, width:], (0, num_new + width - ids.shape[1]), value=pad_id) for ids in (plain, ours))
    for row, (prompt, one, other) in enumerate(zip(prompts, plain.tolist(), ours.tolist(), strict=True)):
        difference = ties.examine(prompt, one, other)
        if difference is None:
            continue
        if difference.position < gaps.shape[1] and gaps[row, difference.position] <= _TIE:
            check.num_ties += 1
        else:
            check.differences.append({"prompt": prompt, "plain": one, "speculative": other, **asdict(difference)})
    return check


def _score_gaps(target: PreTrainedModel, inputs: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    """Best score minus second best after all processors, `(batch, new tokens)`, in plain `generate()`."""
    out = target.generate(**inputs, **options, speculation=False, return_dict_in_generate=True, output_scores=True)
    best = torch.stack(out.scores, 1).topk(2).values
    return best[..., 0] - best[..., 1]


def check_sampling(
    target: PreTrainedModel,
    drafter: Any,
    input_ids: Tensor,
    mode: str,
    num_samples: int,
    batch_size: int,
    speculation: SpeculationConfig | None = None,
) -> SamplingCheck:
    """Test the joint distribution of the first three new tokens of a target with a small vocabulary.

    Args:
        target (`PreTrainedModel`): The target; its vocabulary cubed is enumerated.
        drafter ([`DSparkModel`]): Its drafter.
        input_ids (`torch.LongTensor` of shape `(1, prompt)`): The prompt.
        mode (`str`): One of `SAMPLING_OPTIONS`.
        num_samples (`int`): Samples, rounded up to whole batches.
        batch_size (`int`): Rows of a call.
        speculation ([`SpeculationConfig`], *optional*): How to speculate.

    Returns:
        [`SamplingCheck`].
    """
    speculation = speculation or SpeculationConfig()
    options = {"top_k": 0, "pad_token_id": 0, **SAMPLING_OPTIONS[mode]}
    joint = exact_joint(target, input_ids, _NUM_TOKENS, **options)
    counts = torch.zeros_like(joint)
    rows = input_ids.expand(batch_size, -1)
    width = input_ids.shape[1]
    num_calls = -(-num_samples // batch_size)
    for _ in range(num_calls):
        out = target.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            do_sample=True,
            max_new_tokens=_NUM_TOKENS + 1,
            assistant_model=drafter,
            speculation=speculation,
            **options,
        )
        counts.index_put_(tuple(out[:, width : width + _NUM_TOKENS].T), torch.ones((), dtype=counts.dtype), True)
    return SamplingCheck(
        mode,
        speculation.verification,
        speculation.num_candidates,
        batch_size,
        num_calls * batch_size,
        chi_square_p_value(counts, joint),
    )
