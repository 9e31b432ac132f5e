"""Logits processors of transformers that may be called out of order and with some rows of the batch only.

Processors are told apart by their exact class, because a subclass may do anything. Another class promises by
`is_stateless = True` in its own body that it is a function of prefix and scores, as those of transformers below are.
Shapes: B rows at work, n positions, V vocabulary.
"""

import copy

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation import logits_process

# Processors that look at scores only: rows of any position may share one call.
PREFIX_FREE = frozenset(
    getattr(logits_process, name)
    for name in (
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "InfNanRemoveLogitsProcessor",
        "LogitNormalization",
        "MinPLogitsWarper",
        "SuppressTokensLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopHLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "TypicalLogitsWarper",
    )
)
_OF_DISTRIBUTIONS = frozenset({logits_process.EtaLogitsWarper, logits_process.TopHLogitsWarper})
# Those of them that do not tell tokens apart: what they do to some scores does not depend on whose they are.
TOKEN_FREE = PREFIX_FREE - {logits_process.SuppressTokensLogitsProcessor}
# Processors that look at scores only, and never wait for the device.
ON_DEVICE = PREFIX_FREE - _OF_DISTRIBUTIONS
# Processors that are functions of prefix and scores: calling them on prefixes that are rejected later does no harm.
STATELESS = PREFIX_FREE | frozenset(
    getattr(logits_process, name)
    for name in (
        "EncoderNoRepeatNGramLogitsProcessor",
        "EncoderRepetitionPenaltyLogitsProcessor",
        "ExponentialDecayLengthPenalty",
        "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "NoBadWordsLogitsProcessor",
        "NoRepeatNGramLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "SequenceBiasLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor",
        "WatermarkLogitsProcessor",
    )
)


def is_stateless(processor: LogitsProcessor) -> bool:
    """Whether a processor is a function of prefix and scores, row by row: one of transformers, or one that says so.

    Args:
        processor (`LogitsProcessor`): The processor.
    """
    kind = type(processor)
    # What a class says does not go for its subclasses.
    return kind in STATELESS or vars(kind).get("is_stateless") is True


def process_by_length(
    processor: LogitsProcessor, ids: Tensor, lens: list[int], scores: Tensor, row_ids: list[int], batch_size: int
) -> Tensor:
    """Put the scores of a block through a stateless processor.

    Prefixes of one length share a call, as in plain `generate()`; all share one if the processor does not read them.

    Args:
        processor (`LogitsProcessor`): The processor.
        ids (`torch.LongTensor` of shape `(rows, capacity)`): Token ids, with the drafts behind them.
        lens (`list[int]`): Tokens of each row before its first position.
        scores (`torch.FloatTensor` of shape `(rows, positions, vocab)`): Scores.
        row_ids (`list[int]`): Place of each row in the batch.
        batch_size (`int`): Rows of the batch.

    Returns:
        `torch.FloatTensor` of shape `(rows, positions, vocab)`.
    """
    if type(processor) in PREFIX_FREE:
        flat = scores.flatten(0, 1)
        if type(processor) not in _OF_DISTRIBUTIONS:
            return processor(ids[:, : min(lens)], flat).view(scores.shape)
        # These refuse scores that are no distribution, as of a draft's candidates that are all banned, or behind a
        # draft that plain generate() does not get to. Those stay what they are.
        is_usable = flat.amax(-1, keepdim=True).isfinite()
        processed = processor(ids[:, : min(lens)], torch.where(is_usable, flat, 0.0))
        return torch.where(is_usable, processed, flat).view(scores.shape)
    if type(processor) not in STATELESS:
        # It may write into what it is given.
        scores = scores.clone()
    num_positions = scores.shape[1]
    if min(lens) == max(lens):
        of_rows = for_rows(processor, row_ids, batch_size)
        positions = [of_rows(ids[:, : lens[0] + i], scores[:, i]) for i in range(num_positions)]
        return positions[0].unsqueeze(1) if num_positions == 1 else torch.stack(positions, 1)
    processed = scores.clone()
    # Rows that are nearly done have no room for every position; what stands there is not looked at.
    for length in range(min(lens), min(max(lens) + num_positions, ids.shape[1])):
        rows = [row for row, start in enumerate(lens) if start <= length < start + num_positions]
        if rows:
            places = [length - lens[row] for row in rows]
            of_rows = for_rows(processor, [row_ids[row] for row in rows], batch_size)
            processed[rows, places] = of_rows(ids[rows, :length], scores[rows, places])
    return processed


def for_rows(processor: LogitsProcessor, row_ids: list[int], batch_size: int) -> LogitsProcessor:
    """A stateless processor for some rows of the batch: what it holds of every row is cut down to them.

    Args:
        processor (`LogitsProcessor`): The processor; it is not changed.
        row_ids (`list[int]`): The rows, numbers from 0.
        batch_size (`int`): Rows that it was made for.
    """
    if len(row_ids) == batch_size:
        return processor
    kind = type(processor)
    if kind is logits_process.RepetitionPenaltyLogitsProcessor:
        if isinstance(processor.prompt_ignore_length, Tensor):
            processor = copy.copy(processor)
            processor.prompt_ignore_length = processor.prompt_ignore_length[row_ids]
    elif kind is logits_process.EncoderRepetitionPenaltyLogitsProcessor:
        processor = copy.copy(processor)
        prompts = processor.encoder_input_ids
        # Before num_return_sequences, a prompt stands for several rows.
        processor.encoder_input_ids = prompts[[row * prompts.shape[0] // batch_size for row in row_ids]]
    elif kind is logits_process.EncoderNoRepeatNGramLogitsProcessor:
        processor = copy.copy(processor)
        ngrams = processor.generated_ngrams
        processor.generated_ngrams = [ngrams[row * len(ngrams) // batch_size] for row in row_ids]
        processor.batch_size = len(row_ids)
    return processor
