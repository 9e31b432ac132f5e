"""What PEFT puts around a target for one `generate()`, besides weights."""

from functools import partial

from transformers import PreTrainedModel


def prepares_elsewhere(model: PreTrainedModel) -> bool:
    """Whether another object prepares a target `model`'s inputs, as with prompt and prefix tuning."""
    prepare = vars(model).get("prepare_inputs_for_generation")
    return getattr(prepare, "__self__", model) is not model


def hook_arguments(model: PreTrainedModel) -> set[str]:
    """What hooks hand to a `model`'s layers: `adapter_names`, one for each row, or `alora_offsets`, in tokens."""
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    return {name for hook in hooks if isinstance(hook, partial) for name in hook.keywords}
