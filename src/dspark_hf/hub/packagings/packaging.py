"""One way in which drafters are stored, and what reading any of them takes."""

import os
from collections.abc import Collection, Mapping
from typing import Any

from dspark_hf.modeling import ALGORITHMS, DraftModel

# What changes a drafter's arithmetic without adding a tensor, and the value that changes nothing.
NEUTRAL = {
    "input_embedding_scale": 1,
    "output_multiplier": 1,
    "logit_scale": 1,
    "fc_norm": False,
    "norm_output": False,
    "attention_sink_bias": False,
    "attention_value_scale": None,
    "enable_qwen35_gated_q_proj": False,
    "log_snr_conditioning": False,
    "use_gemma_norm": False,
}
WAY_OUT = "Serve it with the engine that it was made for, or train another: DSparkModel.from_target(target)."


class Packaging:
    """A packaging: by what it is known, and how it becomes the flat layout. A subclass is one file.

    Attributes:
        name (`str`): What `--format` and messages call it.
    """

    name = ""

    def is_of(self, config: Mapping[str, Any], names: Collection[str]) -> bool:
        """Whether a checkpoint is in this packaging.

        Args:
            config (`Mapping`): Its `config.json`.
            names (`Collection[str]`): Names of its tensors.
        """
        raise NotImplementedError

    def flat(self, config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
        """Its `config.json` in the flat layout.

        Args:
            config (`Mapping`): Its `config.json`.
            names (`Collection[str]`): Names of its tensors, as [`Packaging.rename`] gives them.
            where (`str`): Where it lies, for messages.

        Raises:
            `ValueError`: If it is of a kind that is not read.
        """
        raise NotImplementedError

    def rename(self, name: str) -> str:
        """A tensor's `name` in the flat layout."""
        return name

    def write(self, drafter: DraftModel, folder: str | os.PathLike) -> None:
        """Write a `drafter` in this packaging into a `folder`, empty or absent.

        Raises:
            `ValueError`: If this packaging has no place for such a drafter, or is not written at all.
        """
        raise ValueError(f"Drafters are not written in the packaging {self.name}; write the flat layout.")


def known_fields() -> set[str]:
    """Names of fields that drafters of any kind have here, which other packagings share, and of those refused."""
    own = set().union(*(model_cls.config_class.own_fields() for model_cls in ALGORITHMS.values()))
    return own | set(NEUTRAL) | {"target_hidden_size"}


def with_heads(flat: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The `flat` fields, and what they do not say about the confidence head, from the `names` of the tensors."""
    has_head = any(name.endswith("confidence_head.proj.weight") for name in names)
    defaults = {"enable_confidence_head": has_head, "confidence_head_with_markov": bool(flat.get("markov_rank"))}
    return defaults | flat
