"""What the server loads: a target with its drafter."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoProcessor
from transformers.cli.serving.model_manager import ModelManager
from transformers.utils import cached_file

from dspark_hf.files import read_json
from dspark_hf.generation import attach_drafter
from dspark_hf.hub.composite import DSparkForCausalLM
from dspark_hf.hub.embedded import EMBEDDED, resolve_drafter, resolve_target
from dspark_hf.hub.load import AutoDrafter


class DraftedModelManager(ModelManager):
    """transformers' manager of models, for one target with its drafter.

    Args:
        target (`str`): A repository, a folder or `embedded`; it is the model's name for clients.
        drafter (`str`, *optional*): The drafter's. Without it `target` holds both, or is `embedded`.
        options: As of transformers: `device`, `dtype`, `trust_remote_code`, `attn_implementation`, ...

    Raises:
        `ValueError`: If one of the two cannot be loaded, or they do not fit.
    """

    def __init__(self, target: str, drafter: str | None = None, **options: Any):
        # The drafter's place is told before anything is loaded.
        drafter = EMBEDDED if drafter is None and target == EMBEDDED else drafter
        self._source = resolve_target(target)
        self._drafter = None if drafter is None else resolve_drafter(drafter)
        super().__init__(force_model=target, **options)

    @property
    def model(self) -> Any:
        """The target, with its drafter attached."""
        return next(iter(self.loaded_models.values())).model

    def _load_processor(self, model_id_and_revision: str, gguf_file: str | None = None) -> Any:
        source = self._source if self._drafter is not None else _target_of(self._source)
        return AutoProcessor.from_pretrained(source, trust_remote_code=self.trust_remote_code)

    def _load_model(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> Any:
        if self._drafter is None:
            return DSparkForCausalLM.from_pretrained(
                self._source, dtype=self.dtype, device_map=self.device, attn_implementation=self.attn_implementation,
                trust_remote_code=self.trust_remote_code,
            ).eval()  # fmt: skip
        # The small one first: what is missing is told before the target is fetched.
        drafter = AutoDrafter.from_pretrained(self._drafter)
        model = super()._load_model(self._source, *args, **kwargs)
        return attach_drafter(model, drafter.to(device=model.device, dtype=model.dtype).eval())


def _target_of(composite: str) -> str:
    """Where the tokenizer of a composite repository lies: in it, or in the target that it only names."""
    path = Path(composite) / "config.json" if os.path.isdir(composite) else cached_file(composite, "config.json")
    return read_json(path).get("base_model_name_or_path") or composite
