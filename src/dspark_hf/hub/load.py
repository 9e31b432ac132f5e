"""AutoDrafter: any drafter checkpoint, from a folder or the Hub."""

import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

from huggingface_hub import is_offline_mode
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from dspark_hf.files import read_json
from dspark_hf.generation.lengths.calibration import Calibration
from dspark_hf.messages import shown
from dspark_hf.modeling import DraftModel
from dspark_hf.modeling.configuration.recognition import is_of_drafter
from dspark_hf.modeling.fingerprint import public_name
from dspark_hf.modeling.vocabulary import check_vocabulary
from dspark_hf.publishing.contents import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CALIBRATION, SUBFOLDER
from dspark_hf.publishing.hub_errors import explained_load
from dspark_hf.publishing.weight_index import read_stored, read_weight_map

from .adapters import base_of_adapter, check_weights, put_on
from .deepseek_v4 import as_plain, check_memory, stages_alone
from .described import Described, is_dtype, short
from .embedded import resolve_drafter
from .mended_index import mended_index
from .outline import Difference, check_numbers
from .packagings.interleaved import is_interleaved, sort_pairs
from .packagings.renaming import key_mapping
from .trust import check_named

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PICKLE = "pytorch_model.bin"
# What says where files are, for target and drafter alike.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class AutoDrafter:
    """Loads a drafter of any kind: DSpark, DFlash or EAGLE-3.

    Of a repository that holds a target and its drafter (see [`DSparkForCausalLM`]) it takes the drafter. Besides the
    flat layout of released checkpoints, which is what `save_pretrained` writes, it reads the packagings
    of speculators, SpecForge and z-lab.

    Example:

    ```python
    drafter = AutoDrafter.from_pretrained("org/Model-DSpark")
    model.generate(**inputs, assistant_model=drafter)
    ```

    Raises:
        `ValueError`: If it is instantiated.
    """

    def __init__(self):
        raise ValueError("AutoDrafter is not instantiated; use AutoDrafter.from_pretrained(repo_or_dir).")

    @classmethod
    def from_pretrained(cls, repo_or_dir: str | Path, **kwargs: Any) -> DraftModel:
        """Load a drafter in the checkpoint's own dtype; of an adapter, with the drafter below it, as a `PeftModel`.

        Args:
            repo_or_dir (`str` or `Path`): A Hub repository or a folder; of a composite one, its drafter. `"embedded"`
                is the drafter that comes with the library.
            kwargs: As for [`~transformers.PreTrainedModel.from_pretrained`]: `subfolder`, `revision`, `token`,
                `dtype`, `device_map`, `local_files_only`, ...

        Returns:
            [`DraftModel`] or `PeftModel`, in evaluation mode.

        Raises:
            `ValueError`: If there is no drafter there, its layout is unknown, or it cannot be read whole.
        """
        repo_or_dir = resolve_drafter(repo_or_dir)
        where = " / ".join(filter(None, (repo_or_dir, kwargs.get("subfolder"))))
        if kwargs.get("use_safetensors", True) is False:
            raise ValueError(f"use_safetensors=False for {where}: pickles are not read. Leave it out.")
        hub = {name: kwargs[name] for name in (*HUB_ARGUMENTS, "subfolder") if kwargs.get(name) is not None}
        if adapter := _find(repo_or_dir, ADAPTER_CONFIG, where, hub):
            # The drafter below has a place, a revision and a folder of its own.
            below = _without(kwargs, "subfolder", "revision")
            base = base_of_adapter(adapter, where)
            check_named(base, repo_or_dir)
            check_weights(weights := _find(repo_or_dir, ADAPTER_WEIGHTS, where, hub), where)
            try:
                if _find(base, ADAPTER_CONFIG, base, {name: hub[name] for name in hub if name in below}):
                    raise ValueError(f"{base} is an adapter itself.")
                drafter = cls.from_pretrained(base, **below)
            except ValueError as error:
                raise ValueError(
                    f"The adapter in {where} was trained on the drafter {base}, which cannot be loaded: {error} If it "
                    "has moved, load it yourself and call PeftModel.from_pretrained(drafter, adapter)."
                ) from error
            config_path = _find(repo_or_dir, _CONFIG, where, hub)
            adapted = put_on(drafter, repo_or_dir, (adapter, weights), config_path, where, hub)
            # That of the drafter below is for what it was without the adapter.
            drafter.calibration = _calibration(drafter, repo_or_dir, where, hub)
            return adapted
        config = _read_config(repo_or_dir, where, hub)
        is_composite = kwargs.get("subfolder") is None and not is_of_drafter(config)
        if is_composite and _find(repo_or_dir, f"{SUBFOLDER}/{_CONFIG}", where, hub):
            return cls.from_pretrained(repo_or_dir, subfolder=SUBFOLDER, **_without(kwargs, "subfolder"))
        drafter = _load_checkpoint(config, repo_or_dir, where, hub, kwargs).eval()
        drafter.calibration = _calibration(drafter, repo_or_dir, where, hub)
        return drafter


def _calibration(drafter: DraftModel, repo_or_dir: str, where: str, hub: dict[str, Any]) -> Calibration | None:
    """What calibrates its confidence head, if it comes with that; drafts are as right without."""
    path = _find(repo_or_dir, CALIBRATION, where, hub)
    try:
        return None if path is None else Calibration.load(path).found_with(drafter)
    except ValueError as error:
        warnings.warn(f"The calibration of {where} is not used: {error}", stacklevel=3)
        return None


def _load_checkpoint(
    raw: dict[str, Any], repo_or_dir: str, where: str, hub: dict[str, Any], kwargs: dict[str, Any]
) -> DraftModel:
    weight_map = _weight_map(repo_or_dir, where, hub)
    found = Described.of(raw, weight_map, where)
    config = found.config
    if config.own_lm_head and "lm_head.bias" in found.names.values():
        raise ValueError(f"The output head in {where} has a bias, which a drafter's own cannot have.")
    dtype = kwargs.get("dtype", "auto")
    if dtype != "auto" and not is_dtype(dtype):
        raise ValueError(
            f"dtype={shown(dtype)} for {where} is no torch dtype; use e.g. 'bfloat16', 'float32' or 'auto'."
        )
    find = partial(_shard, repo_or_dir, where=where, hub=hub)
    kwargs = {"config": config, "own_embeddings": found.own_embeddings, **kwargs}
    if found.is_in_stages:
        config.target_name_or_path = public_name(repo_or_dir)
        options = _without(kwargs, *HUB_ARGUMENTS, "subfolder")
        check_memory(config, dtype, kwargs.get("device_map"), where)
        with stages_alone(raw, config, weight_map, find, where) as (folder, stages_cls):
            drafter = _checked(*_load_weights(stages_cls, folder, where, options), where)
        return as_plain(drafter, repo_or_dir)
    folder = {Path(find(file)).parent for file in sorted(set(weight_map.values()))}.pop()
    stored = read_stored(folder)
    found.difference(stored).check(where)
    # All is here now.
    options = {"key_mapping": key_mapping(found.names), **_without(kwargs, "force_download")}
    with mended_index(_find(repo_or_dir, _INDEX, where, hub), find) as mended:
        if mended is not None:
            options = _without(options, *HUB_ARGUMENTS, "subfolder")
        drafter = _checked(*_load_weights(found.model_cls, mended or repo_or_dir, where, options), where)
    drafter.config._name_or_path = drafter.name_or_path = repo_or_dir
    # Saving would give the tensors back the names that they had.
    drafter.__dict__.pop("_weight_conversions", None)
    if is_interleaved(found.flat):
        sort_pairs(drafter)
    return drafter


def _load_weights(
    model_cls: type[DraftModel], folder: str, where: str, options: dict[str, Any]
) -> tuple[DraftModel, dict[str, Any]]:
    """The drafter, and what transformers reports of names that are missing or too many."""
    try:
        return model_cls.from_pretrained(folder, output_loading_info=True, **options)
    except FileNotFoundError as error:
        raise ValueError(f"The checkpoint {where} is not whole: {error}. Fetch it again.") from error
    except (OSError, ImportError):
        raise
    # Sizes and names that contradict each other, or the weights, end in any error of torch's and transformers'.
    except Exception as error:
        raise ValueError(f"The weights in {where} do not fit its config.json: {short(error)}") from error


def _checked(drafter: DraftModel, report: dict[str, Any], where: str) -> DraftModel:
    """Check what transformers made of the files."""
    Difference(sorted(report["missing_keys"]), unexplained=sorted(report["unexpected_keys"])).check(where)
    check_numbers(drafter, where)
    if drafter.has_reduced_vocabulary:
        try:
            check_vocabulary(drafter.t2d, drafter.d2t)
        except ValueError as error:
            raise ValueError(f"The checkpoint {where} cannot be used. {error}") from error
    return drafter


def _without(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


def _read_config(repo_or_dir: str, where: str, hub: dict[str, Any]) -> dict[str, Any]:
    path = _find(repo_or_dir, _CONFIG, where, hub, is_needed=True)
    if path is None and not Path(repo_or_dir).is_dir() and (hub.get("local_files_only") or is_offline_mode()):
        raise ValueError(
            f"The drafter {where} is not in the local cache, and this run is offline (HF_HUB_OFFLINE or "
            "local_files_only). Load it once while online."
        )
    if path is None:
        raise ValueError(f"There is no {_CONFIG} in {where}; give a drafter's folder or repository (see `subfolder`).")
    return read_json(path)


def _weight_map(repo_or_dir: str, where: str, hub: dict[str, Any]) -> dict[str, str]:
    """The file of each tensor."""
    index = _find(repo_or_dir, _INDEX, where, hub)
    if index is not None:
        return read_weight_map(index)
    weights = _find(repo_or_dir, _WEIGHTS, where, hub)
    if weights is None and _find(repo_or_dir, _PICKLE, where, hub):
        raise ValueError(
            f"The weights in {where} are a pickle ({_PICKLE}), which is not read. Write them as safetensors once: "
            f"safetensors.torch.save_file(torch.load({_PICKLE!r}, weights_only=True), {_WEIGHTS!r}, "
            "metadata={'format': 'pt'})."
        )
    if weights is None:
        raise ValueError(f"There is no {_WEIGHTS} in {where}; fetch the drafter's weights, or save it again.")
    try:
        with safe_open(weights, framework="pt") as file:
            return dict.fromkeys(file.keys(), _WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{weights} cannot be read ({error}); the file is damaged, fetch it again.") from error


def _shard(repo_or_dir: str, name: str, *, where: str, hub: dict[str, Any]) -> str:
    path = _find(repo_or_dir, name, where, hub, is_needed=True)
    if path is None:
        raise ValueError(
            f"{where} lacks {name}, which its index names as a file of the drafter. Fetch it, or the whole again."
        )
    return path


def _find(repo_or_dir: str, name: str, where: str, hub: dict[str, Any], *, is_needed: bool = False) -> str | None:
    """A file's path; None if it is not there, or, unless it is needed, if the Hub did not answer."""
    is_offline = hub.get("local_files_only") or is_offline_mode()
    try:
        with nullcontext() if is_offline else explained_load(f"the drafter {where}"):
            return cached_file(repo_or_dir, name, _raise_exceptions_for_missing_entries=is_needed, **hub)
    except OSError as error:
        if is_needed and isinstance(error.__cause__, EntryNotFoundError | NoneType):
            return None
        raise ValueError(
            f"Cannot reach a drafter at {where}: {error} There is no folder {repo_or_dir} either. Check its name and "
            "revision, and the token if it is private."
        ) from error
