"""AutoDrafter: any drafter checkpoint, from a folder or the Hub."""

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from huggingface_hub import is_offline_mode
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from dspark_hf.files import read_json
from dspark_hf.generation.lengths.calibration import Calibration
from dspark_hf.modeling import DraftModel
from dspark_hf.modeling.configuration.recognition import is_of_drafter
from dspark_hf.modeling.fingerprint import public_name
from dspark_hf.modeling.vocabulary import check_vocabulary
from dspark_hf.publishing.contents import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CALIBRATION, SUBFOLDER
from dspark_hf.publishing.hub_errors import explained_load
from dspark_hf.publishing.weight_index import read_weight_map

from .adapters import base_of_adapter, check_weights, put_on
from .deepseek_v4 import as_plain, check_memory, has_stages, stages_alone
from .embedded import resolve_drafter
from .packagings import Packaging, drafter_class, find_packaging, flat_config
from .packagings.interleaved import is_interleaved, sort_pairs, without_flags
from .packagings.renaming import key_mapping, without_wrappers
from .shapes import wrong_shape
from .trust import check_named

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PICKLE = "pytorch_model.bin"
_LONGEST_REASON = 600
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
            check_weights(adapter, _find(repo_or_dir, ADAPTER_WEIGHTS, where, hub), where)
            try:
                if _find(base, ADAPTER_CONFIG, base, {name: hub[name] for name in hub if name in below}):
                    raise ValueError(f"{base} is an adapter itself.")
                drafter = cls.from_pretrained(base, **below)
            except ValueError as error:
                raise ValueError(
                    f"The adapter in {where} was trained on the drafter {base}, which cannot be loaded: {error} If it "
                    "has moved, load it yourself and call PeftModel.from_pretrained(drafter, adapter)."
                ) from error
            return put_on(drafter, repo_or_dir, _find(repo_or_dir, _CONFIG, where, hub), where, hub)
        config = _read_config(repo_or_dir, where, hub)
        is_composite = kwargs.get("subfolder") is None and not is_of_drafter(config)
        if is_composite and _find(repo_or_dir, f"{SUBFOLDER}/{_CONFIG}", where, hub):
            return cls.from_pretrained(repo_or_dir, subfolder=SUBFOLDER, **_without(kwargs, "subfolder"))
        drafter = _load_checkpoint(config, repo_or_dir, where, hub, kwargs).eval()
        drafter.calibration = _calibration(repo_or_dir, where, hub)
        return drafter


def _calibration(repo_or_dir: str, where: str, hub: dict[str, Any]) -> Calibration | None:
    """What calibrates its confidence head, if it comes with that; drafts are as right without."""
    path = _find(repo_or_dir, CALIBRATION, where, hub)
    try:
        return None if path is None else Calibration.load(path)
    except ValueError as error:
        warnings.warn(f"The calibration of {where} is not used: {error}", stacklevel=3)
        return None


def _load_checkpoint(
    raw: dict[str, Any], repo_or_dir: str, where: str, hub: dict[str, Any], kwargs: dict[str, Any]
) -> DraftModel:
    weight_map = _weight_map(repo_or_dir, where, hub)
    stored = without_wrappers(weight_map, where)
    packaging = _packaging(raw, stored.values(), where)
    stored = {name: packaging.rename(plain) for name, plain in stored.items()}
    names = set(stored.values())
    flat = _flat(packaging, raw, names, where)
    model_cls, config = _drafter_config(flat, where)
    if config.own_lm_head and "lm_head.bias" in names:
        raise ValueError(f"The output head in {where} has a bias, which a drafter's own cannot have.")
    dtype = kwargs.get("dtype", "auto")
    if dtype != "auto" and not _is_dtype(dtype):
        raise ValueError(f"dtype={dtype!r} for {where} is no torch dtype; use e.g. 'bfloat16', 'float32' or 'auto'.")
    # A checkpoint may carry copies of the target's embedding and head; without them the drafter borrows later.
    kwargs = {"config": config, "own_embeddings": {"embed_tokens.weight", "lm_head.weight"} <= names, **kwargs}
    if not has_stages(raw, names):
        options = {"key_mapping": key_mapping(stored), **kwargs}
        drafter = _checked(*_load_weights(model_cls, repo_or_dir, where, options), names, where)
        # Saving would give the tensors back the names that they had.
        drafter.__dict__.pop("_weight_conversions", None)
        if is_interleaved(flat):
            sort_pairs(drafter)
        return drafter
    config.target_name_or_path = public_name(repo_or_dir)
    options = _without(kwargs, *HUB_ARGUMENTS, "subfolder")
    find = partial(_shard, repo_or_dir, where=where, hub=hub)
    check_memory(config, dtype, kwargs.get("device_map"), where)
    with stages_alone(raw, config, weight_map, find, where) as (folder, stages_cls):
        drafter = _checked(*_load_weights(stages_cls, folder, where, options), names, where)
    return as_plain(drafter, repo_or_dir)


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
        if isinstance(error, KeyError) and error.args == ("metadata",):
            raise ValueError(f'{where}: {_INDEX} has no `metadata`. Add "metadata": {{}} to it.') from error
        places = {name: options[name] for name in (*HUB_ARGUMENTS, "subfolder") if options.get(name) is not None}
        reason = wrong_shape(model_cls, folder, options, places) or _short(error)
        raise ValueError(f"The weights in {where} do not fit its config.json: {reason}") from error


def _checked(drafter: DraftModel, report: dict[str, Any], names: set[str], where: str) -> DraftModel:
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"The checkpoint {where} lacks {len(missing)} tensors that its config.json asks for, e.g. "
            f"{missing[:3]}; it holds {len(names)}. Fetch it again, or correct config.json."
        )
    if unexpected := sorted(report["unexpected_keys"]):
        raise ValueError(
            f"The checkpoint {where} holds {len(unexpected)} tensors that its config.json does not explain, e.g. "
            f"{unexpected[:3]}; without them drafts would be wrong. Correct config.json."
        )
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


def _packaging(config: dict[str, Any], names: Collection[str], where: str) -> Packaging:
    for name in ("dtype", "torch_dtype"):
        if config.get(name) not in (None, "auto") and not _is_dtype(config[name]):
            raise ValueError(f"{where}: {name} in config.json is no torch dtype, got {config[name]!r:.80}.")
    with _told_of(where):
        return find_packaging(config, names, where)


def _flat(packaging: Packaging, config: dict[str, Any], names: set[str], where: str) -> dict[str, Any]:
    with _told_of(where):
        return flat_config(packaging, config, names, where)


def _drafter_config(flat: dict[str, Any], where: str) -> tuple[type[DraftModel], PreTrainedConfig]:
    """The drafter's class and its config, from the fields of the flat layout."""
    with _told_of(where):
        model_cls = drafter_class(flat)
        return model_cls, model_cls.config_class.from_dict(without_flags(flat))


@contextmanager
def _told_of(where: str) -> Iterator[None]:
    """Whatever a config.json ends in, as an error that says whose it is."""
    try:
        yield
    except (OSError, ImportError):
        raise
    # Fields may be of any type, and meet code that expects its own.
    except Exception as error:
        if type(error) is ValueError and where in str(error):
            raise
        raise ValueError(f"{where}: config.json cannot be used: {_short(error)}") from error


def _short(error: Exception) -> str:
    """An error in one line, at a length that can be read: it may quote a field of any length."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."


def _is_dtype(name: Any) -> bool:
    return isinstance(getattr(torch, str(name).removeprefix("torch."), None), torch.dtype)


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
