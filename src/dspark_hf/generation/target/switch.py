"""Models with two rope scalings, such as Phi-3: at one length they drop their cache and compute all tokens anew.

They look for `original_max_position_embeddings` in their config, count the ids that they are given, and do so in the
pass that takes the first id beyond. In plain `generate()` that is a pass for a single new token.
"""

from transformers import PreTrainedModel

from .layout import PromptLayout


class RopeSwitch:
    """Keeps drafts away from that length: none stands across it, and the token behind it is processed alone.

    For other models with such a length this costs a few drafts.

    Args:
        model (`PreTrainedModel`): The target.
        layout ([`PromptLayout`]): Where the prompt stands.
        max_length (`int`): Most token ids of a row, those of the prompt included.
        is_on (`bool`): Whether rotary frequencies may change in this generation; where not, nothing is lost with a
            cache, and nothing gained by computing anew.

    Raises:
        `ValueError`: If the model may reach that length and does not compute its tokens anew.
    """

    def __init__(self, model: PreTrainedModel, layout: PromptLayout, max_length: int, is_on: bool):
        length = getattr(model.config, "original_max_position_embeddings", None) if is_on else None
        self._length, self._shift = length, layout.shift
        if length is None or model.config.model_type != "phi4_multimodal":
            return
        # Of all these models it alone goes on with the single token, without those before it.
        if (layout.num_cached or layout.num_columns) <= length < max_length - 1:
            raise ValueError(
                f"{type(model).__name__} drops its cache at {length} tokens and does not compute them anew in "
                f"transformers, and up to {max_length} are asked for: set max_length to at most {length + 1}, or "
                "generate without a drafter."
            )

    def most_drafts(self, length: int) -> int | None:
        """Drafts that may stand behind `length` tokens; None where there is no limit."""
        if self._length is None or length - 1 + self._shift > self._length:
            return None
        return max(0, self._length - length)
