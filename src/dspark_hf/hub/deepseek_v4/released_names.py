"""What the releases call a drafter's tensors."""

from torch import Tensor
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming, revert_weight_conversion

from dspark_hf.modeling import DSparkModel

# The drafter's own names; transformers would take its norm for that of a compressor. The rest are the target's.
RENAMES = (
    (r"^mtp\.\d+\.main_proj\.", "fc."),
    (r"^mtp\.\d+\.main_norm\.", "hidden_norm."),
    (r"^mtp\.\d+\.norm\.", "norm."),
    (r"^mtp\.\d+\.hc_head_fn", "hc_head.hc_fn"),
    (r"^mtp\.\d+\.hc_head_base", "hc_head.hc_base"),
    (r"^mtp\.\d+\.hc_head_scale", "hc_head.hc_scale"),
    (r"^mtp\.\d+\.markov_head\.", "markov_head."),
    (r"^mtp\.\d+\.confidence_head\.", "confidence_head."),
    (r"^mtp\.", "layers."),
)
# Rules for what stages do not have, whose names would take those of what they do.
_OF_TARGET = (r"\.norm\.", "^hc_head_fn", "^hc_head_base", "^hc_head_scale")


def released_tensors(drafter: DSparkModel) -> dict[str, Tensor]:
    """A `drafter`'s tensors by the names of the releases, in their dtypes."""
    last = drafter.config.num_hidden_layers - 1
    own = [
        WeightRenaming(
            source_patterns=theirs.replace(r"\d+", "0" if "main_" in theirs else str(last)), target_patterns=to
        )
        for theirs, to in RENAMES
    ]
    shared = get_checkpoint_conversion_mapping("deepseek_v4")
    drafter._weight_conversions = own + [rule for rule in shared if rule.source_patterns[0] not in _OF_TARGET]
    try:
        tensors = drafter.state_dict()
        if drafter.device.type != "meta":
            tensors = drafter.family.to_store(tensors, drafter.dtype)
        return revert_weight_conversion(drafter, tensors)
    finally:
        del drafter._weight_conversions
