"""What every batch that a target goes on from needs: padding, sampling options, where answers end."""

from collections.abc import Sequence
from typing import Any

import torch

from dspark_hf.data.grouped_attention import grouped_attention
from dspark_hf.data.roomy_cache import roomy_cache
from dspark_hf.modeling.cache_name import CACHE_NAME


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Stack token lists of different lengths, padded on the left with `pad_id` as `generate()` wants them.

    Args:
        rows (`Sequence[Sequence[int]]`): Ids of each row.
        pad_id (`int`): The token to pad with.

    Returns:
        `dict`: `input_ids` and `attention_mask` (`torch.LongTensor` of shape `(batch, seq)`).
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def sampling_options(temperature: float) -> dict[str, Any]:
    """Options of `generate()` for a `temperature`: greedy at 0, else the target's whole distribution."""
    if temperature > 0:
        return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    # None silences the warning about sampling defaults that a checkpoint carries.
    return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}


def end_ids(target, tokenizer) -> list[int]:
    """The ids that end the `target`'s answer: those of its generation config, else the `tokenizer`'s.

    Raises:
        `ValueError`: If neither names one.
    """
    ids = target.generation_config.eos_token_id
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None:
        raise ValueError(
            "Neither the target's generation config nor its tokenizer names an end-of-sequence token. Set "
            "`target.generation_config.eos_token_id`."
        )
    return list(ids) if isinstance(ids, (list, tuple)) else [ids]


@torch.inference_mode()
def write_on(
    target, rows: Sequence[Sequence[int]], stop_ids: Sequence[int], seed: int, **options: Any
) -> list[tuple[list[int], int | None]]:
    """Let the target go on from each row. The same seed gives the same; global random states are left as they are.

    Args:
        target ([`~transformers.PreTrainedModel`]): The target.
        rows (`Sequence[Sequence[int]]`): Token ids.
        stop_ids (`Sequence[int]`): Tokens that end a row.
        seed (`int`): Seed of the sampling.
        options: Options of `generate()`.

    Returns:
        `list[tuple[list[int], int | None]]`: The new tokens of each row before its end, and the token that ended it.
    """
    inputs = {name: tensor.to(target.device) for name, tensor in left_pad(rows, stop_ids[0]).items()}
    if (cache := roomy_cache(target)) is not None:
        options[CACHE_NAME] = cache
    devices = [target.device] if target.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), grouped_attention(target):
        torch.manual_seed(seed)
        out = target.generate(**inputs, **options, eos_token_id=list(stop_ids), pad_token_id=stop_ids[0])
    written = []
    for ids in out[:, inputs["input_ids"].shape[1] :].tolist():
        end = next((place for place, token in enumerate(ids) if token in stop_ids), None)
        written.append((ids[:end], None if end is None else ids[end]))
    return written
