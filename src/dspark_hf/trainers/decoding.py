"""Held-out tau by real decoding: the target answers held-out prompts with the drafter as it is now."""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import IterableDatasetShard
from torch import nn
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer

from dspark_hf.data.generating import left_pad, sampling_options
from dspark_hf.generation import SpeculationConfig, SpeculationStats


def held_out_prompts(dataset: Any, num_prompts: int) -> list[list[int]]:
    """The first prompts of a dataset: of each row, the tokens before the first supervised one.

    Args:
        dataset (`Sequence` or `Iterable`): Rows of `input_ids` and `loss_mask`.
        num_prompts (`int`): At most so many.

    Raises:
        `ValueError`: If there is none.
    """
    prompts = [prompt for prompt in map(_prompt, islice(_rows(dataset), num_prompts)) if prompt]
    if not prompts:
        raise ValueError(
            "Held-out tau is measured on prompts, the tokens before a row's first supervised one, and the evaluation "
            "dataset has none. Give it conversations, or leave decoding out with num_eval_prompts=0."
        )
    return prompts


def _rows(dataset: Any) -> Iterator[Any]:
    if isinstance(dataset, IterableDatasetShard):
        dataset = dataset.dataset  # every process goes through all prompts, and answers its share of them
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return iter(dataset)
    return (dataset[index] for index in range(len(dataset)))


def _prompt(row: Any) -> list[int]:
    supervised = [bool(keep) for keep in row["loss_mask"]]
    start = supervised.index(True) if True in supervised else 0
    return [int(token) for token in row["input_ids"][:start]]


class WholeDrafter:
    """The drafter to decode with: the trained one, or where its weights are sharded, a copy on the main process.

    Args:
        trainer ([`DraftTrainer`]): The trainer, before its model is wrapped.
        model (`nn.Module`): The drafter.
    """

    def __init__(self, trainer: Trainer, model: nn.Module):
        self.trainer = trainer
        self.is_sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
        self._copy = copy.deepcopy(model).cpu() if self.is_sharded and trainer.is_world_process_zero() else None

    def get(self) -> nn.Module | None:
        """The drafter in evaluation mode; None on processes that have no part in decoding. All processes call it."""
        trainer = self.trainer
        if not self.is_sharded:
            return trainer.model.eval()
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if self._copy is None:
            return None
        self._copy.load_state_dict(weights)
        return self._copy.to(trainer.args.device).eval()


@torch.no_grad()
def decode_prompts(
    target: PreTrainedModel,
    drafter: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> Any:
    """Answer prompts with a drafter.

    Global random states are left as they are, so that training goes on as if nothing had been decoded.

    Args:
        target (`PreTrainedModel`): The target.
        drafter ([`DSparkModel`]): The drafter, bound to it, in evaluation mode.
        prompts (`Sequence[Sequence[int]]`): Token ids.
        max_new_tokens (`int`): Most tokens per answer.
        batch_size (`int`): Prompts per call of `generate()`.
        temperature (`float`, *optional*, defaults to 0.0): 0 decodes greedily.
        seed (`int`, *optional*, defaults to 0): Seed of the sampling.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        [`SpeculationStats`]: The verifications of all answers.
    """
    pad_id = target.generation_config.pad_token_id or 0
    stats = SpeculationStats()
    with tqdm(
        total=len(prompts), desc="Held-out decoding", unit="prompt", leave=False, disable=None if progress else True
    ) as bar:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            inputs = {name: tensor.to(target.device) for name, tensor in left_pad(batch, pad_id).items()}
            target.generate(
                **inputs,
                **sampling_options(temperature),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_id,
                synced_gpus=False,  # every process holds the target whole and goes at its own pace
                assistant_model=drafter,
                speculation=SpeculationConfig(
                    prompt_lookup=False, policy="fixed", seed=seed + start, measure_time=False
                ),
            )
            stats.add(drafter.last_stats)
            bar.update(len(batch))
            bar.set_postfix(tau=f"{stats.tau:.2f}")
    return stats


def decoding_metrics(stats: Any) -> dict[str, float]:
    """`tau` of a generation's `stats`, and `accept_rate_slot_k`: P(slot k accepted | all before it accepted)."""
    rates = {f"accept_rate_slot_{slot}": rate for slot, rate in enumerate(stats.slot_rates, start=1)}
    return {"tau": stats.tau, **rates}
