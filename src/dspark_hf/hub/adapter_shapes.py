"""The tensors that an adapter's config asks for, against those that its file holds, before any is made.

A config of a few bytes may ask for any size. So the adapter is put on the drafter's outline first, which holds shapes
and no numbers, whatever method of PEFT it is.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from dspark_hf.modeling import DraftModel

from .outline import outline


def check_shapes(drafter: DraftModel, config_path: str, weights: str, where: str) -> None:
    """Check that every tensor of an adapter is in its file, in the shape that its config asks for.

    Args:
        drafter ([`DraftModel`]): The drafter that it is put on.
        config_path (`str`): Its `adapter_config.json`, with fields that were found right.
        weights (`str`): Its safetensors file.
        where (`str`): The adapter, in messages.

    Raises:
        `ValueError`: If the file is damaged, or a tensor is missing, of another shape, or would be made up and larger
            than the drafter.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict  # takes a second, and few drafters have adapters

    try:
        with safe_open(weights, framework="pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(f"{weights} cannot be read ({error}); the file is damaged, fetch it again.") from error
    config = PeftConfig.from_pretrained(str(Path(config_path).parent))
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = False  # some ways to begin are computed from weights, which an outline has not
    has_copies = drafter.embed_tokens is not None and drafter.lm_head is not None
    model = outline(type(drafter), drafter.config, where, own_embeddings=has_copies)
    num_own = _num_numbers(model)
    with torch.device("meta"):
        adapted = PeftModel(model, config)
    wanted = {name: tuple(one.shape) for name, one in get_peft_model_state_dict(adapted).items()}
    for name, shape in wanted.items():
        if stored.get(name) != shape:
            has = f"{stored[name]} in it" if name in stored else "not there"
            raise ValueError(
                f"{config_path} asks for the tensor {name} of shape {shape}, which is {has} ({weights}). Fetch both "
                "again."
            )
    num_made = _num_numbers(adapted) - num_own
    if num_made - sum(torch.Size(shape).numel() for shape in wanted.values()) > num_own:
        raise ValueError(
            f"{config_path} asks for {num_made} numbers, of which most are not in {weights}, for a drafter of "
            f"{num_own}. Lower its rank, or load the drafter yourself: PeftModel.from_pretrained(drafter, adapter)."
        )


def _num_numbers(model: nn.Module) -> int:
    return sum(one.numel() for one in (*model.parameters(), *model.buffers()))
