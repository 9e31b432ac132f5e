"""The decoder families a drafter can be built from, by transformers `model_type`."""

from dspark_hf.messages import shown

from .deepseek_v4 import DeepseekV4
from .family import Family
from .gemma4 import Gemma4
from .llama import Llama
from .qwen3 import Qwen3
from .qwen3_5 import Qwen35

FAMILIES: dict[str, Family] = {
    "deepseek_v4": DeepseekV4(),
    "gemma4_text": Gemma4(),
    "gemma4_unified_text": Gemma4(),
    "llama": Llama(),
    "qwen3": Qwen3(),
    "qwen3_5": Qwen35(),
    "qwen3_5_text": Qwen35(),
}
DEFAULT_FAMILY = "qwen3"


def get_family(model_type: str) -> Family:
    """The family of a draft decoder, by the `model_type` of its config.

    Raises:
        `ValueError`: If no family has this `model_type`.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"No drafter family is called {shown(model_type)}. Known families: {', '.join(sorted(FAMILIES))}. "
            f"Any target can take a {DEFAULT_FAMILY!r}-shaped drafter."
        )
    return FAMILIES[model_type]


__all__ = ["DEFAULT_FAMILY", "FAMILIES", "Family", "get_family"]
