"""LoRA and its like on a drafter: which modules take adapters, and what is saved with them."""

from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from dspark_hf.files import follow_umask
from dspark_hf.modeling import DraftModel
from dspark_hf.modeling.plain_head import plain_weight
from dspark_hf.modeling.wrappers import unwrap

from .arguments import DraftTrainingArguments

logger = logging.get_logger(__name__)
# Training reads this matrix instead of calling the module, so an adapter on it would not be trained.
_READ_AS_MATRIX = "markov_w2"


def check_roles(model: Any, target: Any, args: Any) -> None:
    """Check that drafter, target and arguments of a trainer are what their places say.

    Args:
        model (`Any`): What should be the drafter, or a PEFT or compiled wrapper around it.
        target (`Any`): What should be the target.
        args (`Any`): What should be [`DraftTrainingArguments`].

    Raises:
        `ValueError`: If one is not.
    """
    if not isinstance(unwrap(model), DraftModel):
        is_swapped = isinstance(unwrap(target), DraftModel)
        raise ValueError(
            f"The first argument of DraftTrainer is the drafter, got {type(model).__name__}"
            f"{', and a drafter as the second: swap them' * is_swapped}."
        )
    if isinstance(target, str) or not isinstance(unwrap(target), PreTrainedModel):
        raise ValueError(
            f"The second argument of DraftTrainer is the target, a loaded model, got {type(target).__name__}."
        )
    if not isinstance(args, DraftTrainingArguments):
        raise ValueError(
            f"args must be DraftTrainingArguments, which have defaults of their own for a drafter (the learning rate, "
            f"say), got {type(args).__name__}: give it the same arguments."
        )


def add_adapter(drafter: PreTrainedModel, peft_config: PeftConfig) -> PeftModel:
    """Put a fresh adapter on a drafter, whose own weights are frozen.

    Args:
        drafter ([`DSparkModel`]): The drafter.
        peft_config (`PeftConfig`): E.g. `LoraConfig(r=16)`. Without `target_modules`, every linear layer gets an
            adapter but the sequential head's output matrix.

    Returns:
        `PeftModel`: Works wherever a drafter does.

    Raises:
        `ValueError`: If the drafter has an adapter already, or the config asks for what a drafter cannot have.
    """
    if isinstance(drafter, PeftModel):
        raise ValueError(
            "The drafter has an adapter already, and peft_config asks for another: leave peft_config out to go on "
            "training the one there is, or merge it first with drafter.merge_and_unload()."
        )
    if not isinstance(peft_config, PeftConfig) or peft_config.is_prompt_learning:
        raise ValueError(
            f"peft_config must describe adapters inside the layers, e.g. LoraConfig(r=16), got "
            f"{type(peft_config).__name__}; a drafter reads no prompt."
        )
    if not drafter.name_or_path:
        logger.warning(
            "This drafter was not loaded from anywhere, and an adapter's folder holds no weights but its own: save "
            "the drafter itself too, with save_pretrained, before training."
        )
    if getattr(peft_config, "target_modules", None) in (None, "all-linear"):
        peft_config.target_modules = sorted(_linear_layers(drafter))
    adapted = get_peft_model(drafter, peft_config)
    names = [name for name, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)]
    if grouped := [one for one in drafter.family.without_adapter if any(name.endswith(one) for name in names)]:
        raise ValueError(
            f"target_modules name {grouped[0]}, which takes its inputs in groups and cannot take an adapter. Leave it "
            "out; without target_modules it is."
        )
    if any(_READ_AS_MATRIX in name for name in names):
        raise ValueError(
            f"target_modules name {_READ_AS_MATRIX}, which is read as a matrix and cannot take an adapter. Leave it "
            f"out, or train it whole with modules_to_save=['{_READ_AS_MATRIX}']."
        )
    return adapted


def _linear_layers(drafter: PreTrainedModel) -> list[str]:
    without = (_READ_AS_MATRIX, *drafter.family.without_adapter)
    return [
        name
        for name, module in drafter.named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(without) and not name.startswith("lm_head")
    ]


def check_trainable(model: nn.Module) -> None:
    """Check that there is something to train in a `model`.

    Raises:
        `ValueError`: If every weight is frozen, as those of an adapter loaded for use are.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "Every weight of this drafter is frozen. To go on training a saved adapter load it with "
            "PeftModel.from_pretrained(drafter, adapter, is_trainable=True); thaw any other with requires_grad_(True)."
        )


def check_target_head(target: PreTrainedModel) -> None:
    """Check that the `target`'s output head can be read as a matrix, as the loss does.

    Raises:
        `ValueError`: If the head carries an adapter, or is quantised in a form that it alone can read.
    """
    head = unwrap(target).get_output_embeddings()
    plain_weight(head)
    if isinstance(head, BaseTunerLayer):
        raise ValueError(
            "The target's output head carries an adapter, and the loss reads the head as one matrix; merge it first: "
            "target = target.merge_and_unload()."
        )


def save_base_config(model: Any, folder: str) -> None:
    """Write the drafter's own config beside its adapter: it names the target that the adapter was trained for.

    Who may read other new files may read the adapter.

    Args:
        model (`Any`): The drafter; nothing is written for one without an adapter.
        folder (`str`): Where.
    """
    if isinstance(model, PeftModel):
        unwrap(model).config.save_pretrained(folder)
        follow_umask(folder)
