"""EAGLE-3 as its authors and SpecForge store it: a stock decoder's config that leaves the taps to the engine."""

from collections.abc import Collection, Mapping
from typing import Any

from dspark_hf.modeling import Eagle3Config

from .packaging import Packaging

_PREFIX = "midlayer."


class Midlayer(Packaging):
    """EAGLE-3 whose layer is called `midlayer`."""

    name = "midlayer"

    def is_of(self, config: Mapping[str, Any], names: Collection[str]) -> bool:
        return any(name.startswith(_PREFIX) for name in names)

    def rename(self, name: str) -> str:
        return f"layers.0.{name.removeprefix(_PREFIX)}" if name.startswith(_PREFIX) else name

    def flat(self, config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
        if config.get("target_layer_ids") is None:
            raise ValueError(
                f"{where} does not say which target layers it reads, and engines count them differently: add "
                "target_layer_ids to config.json, counted from 0. Usual for a target of n layers are 1, n // 2 - 1 "
                "and n - 4."
            )
        trained = {"own_lm_head": "lm_head.weight" in names, "ttt_length": Eagle3Config.ttt_length}
        flat = trained | {name: value for name, value in config.items() if name != "eagle_config"}
        return flat | {"draft_vocab_size": config.get("draft_vocab_size") if "d2t" in names else None}
