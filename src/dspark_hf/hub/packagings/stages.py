"""DeepSeek-V4's releases, which hold their drafter inside the target's checkpoint."""

from collections.abc import Collection, Mapping
from typing import Any

from dspark_hf.hub.deepseek_v4 import flat_fields, has_stages

from .packaging import Packaging


class Stages(Packaging):
    """Tensors `mtp.*` among the target's."""

    name = "v4"

    def is_of(self, config: Mapping[str, Any], names: Collection[str]) -> bool:
        return has_stages(config, names)

    def flat(self, config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
        return flat_fields(config, names, where)
