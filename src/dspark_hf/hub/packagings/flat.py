"""The flat layout: DeepSpec's releases, and what `save_pretrained` writes."""

import os
from collections.abc import Collection, Mapping
from typing import Any

from dspark_hf.modeling import DraftModel

from .packaging import Packaging


class Flat(Packaging):
    """The drafter's fields beside its layers'."""

    name = "flat"

    def is_of(self, config: Mapping[str, Any], names: Collection[str]) -> bool:
        return "target_layer_ids" in config and ("block_size" in config or "ttt_length" in config)

    def flat(self, config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
        # Trainers leave these behind, and engines pass over them.
        left_out = {"auto_map", "projector_type"}
        if str(config.get("model_type")).startswith("qwen3_5"):
            left_out.add("enable_qwen35_gated_q_proj")  # as the layer is
        return {name: value for name, value in config.items() if name not in left_out}

    def write(self, drafter: DraftModel, folder: str | os.PathLike) -> None:
        drafter.save_pretrained(folder)
