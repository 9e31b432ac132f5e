"""The exact joint distribution of a target's next tokens, and the test whether samples follow it."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

# Least expected count of a cell: with fewer the statistic does not follow the chi-square distribution.
_MIN_EXPECTED = 5.0


def exact_joint(
    target: PreTrainedModel,
    input_ids: Tensor,
    num_tokens: int,
    make_processors: Callable[[], list] = list,
    **options: Any,
) -> Tensor:
    """Enumerate the first new tokens under all that `generate()` would do to the logits.

    Every prefix takes an uncached forward pass, so the vocabulary and `num_tokens` must be small.

    Args:
        target (`PreTrainedModel`): A target with a small vocabulary.
        input_ids (`torch.LongTensor` of shape `(1, prompt)`): The prompt.
        num_tokens (`int`): New tokens.
        make_processors (`Callable`, *optional*): Makes fresh processors of the caller's own.
        options: Sampling options of `generate()`.

    Returns:
        `torch.DoubleTensor` of shape `(vocab,) * num_tokens`: Probabilities.
    """
    vocab_size = target.config.get_text_config().vocab_size
    joint = torch.ones((), dtype=torch.float64)
    for length in range(num_tokens):
        prefixes = torch.tensor(list(itertools.product(range(vocab_size), repeat=length)), dtype=torch.long)
        prefixes = prefixes.view(vocab_size**length, length)
        ids = torch.cat([input_ids.expand(len(prefixes), -1), prefixes], 1)
        with torch.no_grad():
            logits = target(ids).logits[:, -1].float()
        processors = _prepared_processors(target, input_ids, make_processors(), options)
        # Row by row: a processor may remember a sequence.
        scores = [processors(ids[row : row + 1], logits[row : row + 1].clone()) for row in range(len(ids))]
        probs = torch.cat(scores).double().softmax(-1)
        joint = joint.unsqueeze(-1) * probs.view((vocab_size,) * (length + 1))
    return joint


def chi_square_p_value(counts: Tensor, joint: Tensor) -> float:
    """Probability that samples of `joint` differ from it as much as `counts` do.

    Rare cells are merged until each is expected five times. A cell that cannot occur and did gives 0.

    Args:
        counts (`torch.Tensor` of any shape): How often each outcome occurred.
        joint (`torch.DoubleTensor` of the same shape): Probabilities.

    Returns:
        `float`: The p-value of Pearson's chi-square test.

    Raises:
        `ValueError`: If the samples are too few for two cells.
    """
    observed, expected = counts.double().flatten(), joint.flatten() * counts.sum()
    if bool((observed[expected == 0] > 0).any()):
        return 0.0
    order = expected.argsort()
    bins = (expected[order].cumsum(0) / _MIN_EXPECTED).long()
    bins = bins.clamp(max=max(int(bins[-1]) - 1, 0))  # what is left over joins the last whole bin
    merged = torch.zeros(2, int(bins[-1]) + 1, dtype=torch.float64)
    merged[0].index_add_(0, bins, observed[order])
    merged[1].index_add_(0, bins, expected[order])
    merged = merged[:, merged[1] > 0]
    if merged.shape[1] < 2:
        raise ValueError(f"Too few samples for a chi-square test: {int(counts.sum())}. Draw more.")
    statistic = ((merged[0] - merged[1]) ** 2 / merged[1]).sum()
    freedom = torch.tensor((merged.shape[1] - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def _prepared_processors(
    target: PreTrainedModel, input_ids: Tensor, own: list, options: dict[str, Any]
) -> LogitsProcessorList:
    """All processors and warpers that `generate()` sets up for these options."""
    seen = {}

    def capture(model: PreTrainedModel, input_ids: Tensor, **kwargs: Any) -> Tensor:
        seen.update(kwargs)
        return input_ids

    target.generate(
        input_ids,
        custom_generate=capture,
        logits_processor=LogitsProcessorList(own),
        max_new_tokens=9,
        do_sample=True,
        **options,
    )
    return seen["logits_processor"]
