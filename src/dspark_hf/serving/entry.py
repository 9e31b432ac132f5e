"""The way into continuous batching with a drafter: what is asked for is checked, then a manager is made."""

from collections.abc import Callable
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from dspark_hf.generation.config import SpeculationConfig
from dspark_hf.modeling.placement import compute_device

from .checks import check_batching


def make_manager(
    model: PreTrainedModel,
    make: Callable,
    drafter: Any,
    speculation: SpeculationConfig | None,
    generation_config: GenerationConfig | None,
    batching_config: ContinuousBatchingConfig | None,
    workload_hints: Any,
    tokenizer: Any = None,
) -> Any:
    """A manager of continuous batching that speculates.

    Args:
        model (`PreTrainedModel`): The target.
        make (`Callable`): transformers' own `init_continuous_batching` of it.
        drafter ([`DSparkModel`]): The drafter.
        speculation ([`SpeculationConfig`], *optional*): How to speculate.
        generation_config, batching_config, workload_hints: As of transformers.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The target's, for stop strings.

    Returns:
        [`SpeculativeManager`].

    Raises:
        `ValueError`: If the two models do not fit, something is asked for that is not supported, or a manager without
            this drafter is kept for the model.
        `RuntimeError`: If this release of transformers batches in another way than is known here.
    """
    try:
        from .batching.manager import SpeculativeManager, make_choosers, one_at_a_time
        from .batching.release import check_release
    except ImportError as error:
        raise RuntimeError(
            f"Continuous batching of this version of transformers does not take drafters ({error}). Install one that "
            "it is tested with: pip install 'transformers==5.24.*'."
        ) from None
    check_release()
    speculation = SpeculationConfig() if speculation is None else speculation
    kept = vars(model).get("_cached_continuous_batching_manager")
    if kept is not None:
        if getattr(kept, "drafter", None) is not drafter:
            raise ValueError(
                "A manager of continuous batching is kept for this model, without this drafter: call "
                "model.destroy_cached_continuous_batching_manager() first, or pass speculation=False to go on with it."
            )
        if tokenizer is not None:
            kept.stop_texts.tokenizer = tokenizer
        return make()
    generation_config = model.generation_config if generation_config is None else generation_config
    check_batching(model, drafter, generation_config, speculation)
    choosers = make_choosers(model, generation_config, speculation)
    if not drafter.is_bound_to(model):
        drafter.bind(model, check_name=speculation.check_target)
    device = compute_device(model.get_input_embeddings())
    if drafter.device != device:
        drafter.to(device)
    manager = make(generation_config, one_at_a_time(batching_config), workload_hints)
    return SpeculativeManager.of(manager, drafter, speculation, choosers, tokenizer)
