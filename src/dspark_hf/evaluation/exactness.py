"""Whether speculative output is the target's: coupled greedy runs, and chi-square tests of sampled ones."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dspark_hf.evaluation.enumeration import chi_square_p_value, exact_joint
from dspark_hf.evaluation.oracle import OracleDrafter
from dspark_hf.evaluation.precision import PrecisionCopies
from dspark_hf.evaluation.ties import TieFinder
from dspark_hf.generation import SpeculationConfig

FAMILIES = ("llama", "qwen3", "qwen2", "mistral", "gemma2", "gemma3_text", "phi3", "mixtral")
_OVERRIDES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
}
GREEDY_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalty": {"repetition_penalty": 1.3},
    "ngrams": {"no_repeat_ngram_size": 3},
    "min_length": {"min_new_tokens": 7, "eos_token_id": [1, 2]},
    "several_eos": {"eos_token_id": [1, 2, 3]},
    "bias": {"sequence_bias": [[[2], 1.0], [[1, 3], -2.0]], "bad_words_ids": [[3], [1, 2]]},
}
SAMPLING_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "warpers": {"temperature": 0.8, "top_k": 4, "top_p": 0.95, "min_p": 0.02},
    "penalty": {"repetition_penalty": 1.6, "temperature": 1.3},
    "prefix": {"no_repeat_ngram_size": 2, "sequence_bias": [[[2], 1.0], [[1, 3], -2.0]], "typical_p": 0.9},
}
_SPECULATIONS = (SpeculationConfig(), SpeculationConfig(max_draft_len=2), SpeculationConfig(confidence_threshold=0.3))
_VOCAB_SIZES = (5, 48)
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


@dataclass
class SamplingCheck:
    """Joint distribution of the first new tokens against its enumeration.

    Args:
        mode (`str`): Which of `SAMPLING_OPTIONS`.
        batch_size (`int`): Rows of a call.
        num_samples (`int`): Samples.
        p_value (`float`): Chance of samples that far from the exact distribution.
    """

    mode: str
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
        drafter ([`DSparkModel`]): Its drafter; an [`~evaluation.oracle.OracleDrafter`] is told the plain output.
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
    return SamplingCheck(mode, batch_size, num_calls * batch_size, chi_square_p_value(counts, joint))


def run_exactness(
    num_prompts: int = 1000,
    num_samples: int = 3000,
    seed: int = 0,
    report: Callable[[str, int], None] = lambda name, num_done: None,
) -> dict[str, Any]:
    """Check tiny random targets of several families: greedy runs and sampled ones.

    Drafters are random, and told for greedy runs how the text goes on ([`~evaluation.oracle.OracleDrafter`]), so that
    rounds of every accepted length occur. Vocabularies are so small that random drafts are often right when sampling.

    Args:
        num_prompts (`int`, *optional*, defaults to 1000): Random prompts over all families: ragged batches with
            padding on either side, random options, lengths and policies.
        num_samples (`int`, *optional*, defaults to 3000): Samples of each sampling mode.
        seed (`int`, *optional*, defaults to 0): Seed of models, prompts and samples.
        report (`Callable`, *optional*): Called with the name of a part and the prompts done so far.

    Returns:
        `dict`: `greedy` (by family), `sampling` (a list), `is_exact`, and the settings.

    Raises:
        `ValueError`: If a number is not positive.
    """
    for name, value in (("num_prompts", num_prompts), ("num_samples", num_samples)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    generator = random.Random(seed)
    greedy: dict[str, GreedyCheck] = {}
    num_done = 0
    for index, family in enumerate(FAMILIES):
        share = num_prompts * (index + 1) // len(FAMILIES) - num_prompts * index // len(FAMILIES)
        check = GreedyCheck()
        for part in _greedy_checks(family, share, generator):
            check = check + part
            report(family, num_done + check.num_prompts)
        num_done += check.num_prompts
        greedy[family] = check
    sampling = list(_sampling_checks(num_samples, seed))
    # The chance that one of so many honest tests falls below is 0.1%.
    limit = 1e-3 / len(sampling)
    exact = not any(check.differences for check in greedy.values()) and min(s.p_value for s in sampling) > limit
    return {
        "seed": seed,
        "num_prompts": num_done,
        "greedy": {family: _as_dict(check) for family, check in greedy.items()},
        "sampling": [asdict(check) for check in sampling],
        "least_p_value_allowed": limit,
        "is_exact": exact,
    }


def _as_dict(check: GreedyCheck) -> dict[str, Any]:
    # asdict() would count a Counter's items.
    return {**vars(check), "accepted_lens": dict(sorted(check.accepted_lens.items()))}


def _greedy_checks(family: str, num_prompts: int, generator: random.Random) -> Iterator[GreedyCheck]:
    num_left = num_prompts
    while num_left > 0:
        vocab_size = generator.choice(_VOCAB_SIZES)
        target, drafter = _tiny_pair(family, vocab_size, generator)
        for _ in range(8):
            if num_left <= 0:
                return
            batch_size = min(generator.choice((1, 1, 2, 3, 5)), num_left)
            inputs = _ragged_prompts(batch_size, vocab_size, generator)
            options = GREEDY_OPTIONS[generator.choice(list(GREEDY_OPTIONS))]
            yield check_greedy(
                target,
                drafter,
                inputs,
                max_new_tokens=generator.randint(1, 24),
                speculation=generator.choice(_SPECULATIONS),
                pad_token_id=0,
                **options,
            )
            num_left -= batch_size


def _sampling_checks(num_samples: int, seed: int) -> Iterator[SamplingCheck]:
    generator = random.Random(seed)
    target, drafter = _tiny_pair("llama", _VOCAB_SIZES[0], generator)
    input_ids = torch.tensor([[1, 3, 2]])
    torch.manual_seed(seed)
    for mode in SAMPLING_OPTIONS:
        # Rows of a large batch are samples too, and cost little.
        for batch_size in (1, 3, 64):
            speculation = generator.choice(_SPECULATIONS)
            few = num_samples if batch_size > 3 else -(-num_samples // 8)
            yield check_sampling(target, drafter, input_ids, mode, few, batch_size, speculation)


def _tiny_pair(family: str, vocab_size: int, generator: random.Random) -> tuple[PreTrainedModel, OracleDrafter]:
    """A random target whose choices vary from place to place, and a random drafter for it."""
    torch.manual_seed(generator.randrange(2**31))
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.5,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    fields |= _OVERRIDES.get(family, {})
    target = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).eval()
    drafter = OracleDrafter.from_target(
        target, block_size=generator.randint(1, 6), markov_rank=4, num_hidden_layers=1, target_layer_ids=[0, 2]
    )
    return target, drafter.eval()


def _ragged_prompts(batch_size: int, vocab_size: int, generator: random.Random) -> dict[str, Tensor]:
    lens = [generator.randint(1, 20) for _ in range(batch_size)]
    width = max(lens)
    ids = torch.zeros(batch_size, width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    is_left = generator.random() < 0.7
    for row, length in enumerate(lens):
        place = slice(width - length, width) if is_left else slice(0, length)
        ids[row, place] = torch.tensor([generator.randrange(1, vocab_size) for _ in range(length)])
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
