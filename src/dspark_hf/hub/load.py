"""AutoDrafter: any drafter checkpoint, from a folder or the Hub."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from dspark_hf.modeling import DSparkModel

from .adapters import ADAPTER_CONFIG, base_of_adapter, put_on

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class AutoDrafter:
    """Loads a drafter in the flat layout of released DSpark checkpoints.

    Example:

    ```python
    drafter = AutoDrafter.from_pretrained("org/Model-DSpark", subfolder="dspark")
    model.generate(**inputs, assistant_model=drafter)
    ```
    """

    def __init__(self):
        raise ValueError("AutoDrafter is not instantiated; use AutoDrafter.from_pretrained(repo_or_dir).")

    @classmethod
    def from_pretrained(cls, repo_or_dir: str | Path, **kwargs: Any) -> DSparkModel:
        """Load a drafter in the checkpoint's own dtype; of an adapter, with the drafter below it, as a `PeftModel`.

        Args:
            repo_or_dir (`str` or `Path`): A Hub repository or a folder.
            kwargs: As for [`~transformers.PreTrainedModel.from_pretrained`]: `subfolder`, `revision`, `token`,
                `dtype`, `device_map`, `local_files_only`, ...

        Raises:
            `ValueError`: If there is no drafter there, its layout is unknown, or it cannot be read whole.
        """
        repo_or_dir = str(repo_or_dir)
        where = " / ".join(filter(None, (repo_or_dir, kwargs.get("subfolder"))))
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if kwargs.get(name) is not None}
        if adapter := _find(repo_or_dir, ADAPTER_CONFIG, where, hub):
            # The drafter below has a place, a revision and a folder of its own.
            below = {name: value for name, value in kwargs.items() if name not in ("subfolder", "revision")}
            drafter = cls.from_pretrained(base_of_adapter(adapter, where), **below)
            return put_on(drafter, repo_or_dir, _find(repo_or_dir, _CONFIG, where, hub), where, hub)
        config = _read_config(repo_or_dir, where, hub)
        _check_layout(config, where)
        names = _tensor_names(repo_or_dir, where, hub)
        dtype = kwargs.get("dtype", "auto")
        if not (dtype == "auto" or isinstance(getattr(torch, str(dtype).removeprefix("torch."), None), torch.dtype)):
            raise ValueError(
                f"dtype={dtype!r} for {where} is no torch dtype; use e.g. 'bfloat16', 'float32' or 'auto'."
            )
        # A checkpoint may carry copies of the target's embedding and head; without them the drafter borrows later.
        kwargs["own_embeddings"] = {"embed_tokens.weight", "lm_head.weight"} <= names
        try:
            drafter, report = DSparkModel.from_pretrained(repo_or_dir, output_loading_info=True, **kwargs)
        except RuntimeError as error:
            raise ValueError(f"The weights in {where} do not fit its config.json: {error}") from error
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"The checkpoint {where} lacks {len(missing)} tensors that its config.json asks for, e.g. "
                f"{missing[:3]}; it holds {len(names)}. Fetch it again, or correct config.json."
            )
        return drafter.eval()


def _read_config(repo_or_dir: str, where: str, hub: dict[str, Any]) -> dict[str, Any]:
    path = _find(repo_or_dir, _CONFIG, where, hub)
    if path is None and not Path(repo_or_dir).is_dir() and (hub.get("local_files_only") or is_offline_mode()):
        raise ValueError(
            f"The drafter {where} is not in the local cache, and this run is offline (HF_HUB_OFFLINE or "
            "local_files_only). Load it once while online."
        )
    if path is None:
        raise ValueError(f"There is no {_CONFIG} in {where}; give a drafter's folder or repository (see `subfolder`).")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); fetch the checkpoint again.") from error


def _check_layout(config: dict[str, Any], where: str) -> None:
    if "target_layer_ids" in config and "block_size" in config:
        return
    kind = next((name for name in ("speculators_model_type", "dflash_config") if name in config), None)
    found = f"a {kind!r} packaging, which is not read yet" if kind else f"model_type={config.get('model_type')!r}"
    raise ValueError(
        f"{where} is no DSpark drafter in the flat layout: its config.json has no target_layer_ids and block_size; "
        f"found {found}. A target is loaded with AutoModelForCausalLM; a composite repository keeps its drafter in a "
        "subfolder: AutoDrafter.from_pretrained(repo, subfolder='dspark')."
    )


def _tensor_names(repo_or_dir: str, where: str, hub: dict[str, Any]) -> set[str]:
    index = _find(repo_or_dir, _INDEX, where, hub)
    if index is not None:
        return set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"])
    weights = _find(repo_or_dir, _WEIGHTS, where, hub)
    if weights is None:
        raise ValueError(f"There is no {_WEIGHTS} in {where}; the drafter's weights are missing.")
    try:
        with safe_open(weights, framework="pt") as file:
            return set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{weights} cannot be read ({error}); the file is damaged, fetch it again.") from error


def _find(repo_or_dir: str, name: str, where: str, hub: dict[str, Any]) -> str | None:
    try:
        return cached_file(repo_or_dir, name, _raise_exceptions_for_missing_entries=False, **hub)
    except OSError as error:
        raise ValueError(f"Cannot reach a drafter at {where}: {error}") from error
