"""A DeepSeek-V4-shaped drafter written beside its target, in the form of the releases, with unquantised weights."""

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dspark_hf.files import copy_files, follow_umask, read_json, write_json
from dspark_hf.messages import shown
from dspark_hf.modeling import DSparkConfig, DSparkModel
from dspark_hf.publishing.weight_index import read_weight_map

from .layout import HEADS, OWN, PREFIX, flat_fields
from .loading import INDEX
from .released_names import released_tensors

WEIGHTS = "model.safetensors"
# What a layer's arithmetic rests on beside its weights, and the sizes of these: the form has one place for target and
# drafter. Rope apart, of which a drafter has no compressed kind.
_SHARED = (
    "vocab_size", "moe_intermediate_size", "n_routed_experts", "num_experts_per_tok",
    "scoring_func", "routed_scaling_factor", "swiglu_limit", "hidden_act", "num_attention_heads", "head_dim",
    "q_lora_rank", "o_lora_rank", "o_groups", "sliding_window", "hc_mult", "hc_sinkhorn_iters", "hc_eps",
    "rms_norm_eps",
)  # fmt: skip


def write_stages(drafter: DSparkModel, target: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Write a checkpoint with target and drafter in it, which [`AutoDrafter`] reads as it does a release.

    The target's files are copied, so that what is later written into either folder leaves the other as it is. Fields
    and tensors are those of the releases, but the drafter's weights are not quantised.

    Args:
        drafter ([`DSparkModel`]): A DeepSeek-V4-shaped drafter with the heads of the releases.
        target (`str` or `os.PathLike`): The target's folder, with its weights in one file or several and an index.
        folder (`str` or `os.PathLike`): The folder to write, empty or absent.

    Raises:
        `ValueError`: If the form has no place for such a drafter, the target is none for it or has one already, or
            the disk has no room for both.
    """
    target, folder = Path(target), Path(folder)
    raw, weight_map = read_json(target / "config.json"), _weight_map(target)
    _check(drafter, raw, weight_map, target)
    raw |= _fields(drafter, raw)
    _check_shared(drafter, raw, target)
    released, files = released_tensors(drafter), [*target.iterdir(), *target.glob("encoding/*.py")]
    files = [path for path in files if path.is_file() and path.name not in ("config.json", INDEX)]
    _check_room(folder, sum(path.stat().st_size for path in files) + sum(one.nbytes for one in released.values()))
    folder.mkdir(parents=True, exist_ok=True)
    copy_files(target, [path.relative_to(target) for path in files], folder)
    stages: dict[str, dict[str, Tensor]] = {}
    for name, weight in released.items():
        stages.setdefault(name.split(".")[1], {})[name] = weight.detach().cpu().contiguous()
    for number, tensors in stages.items():
        file = f"model-mtp-{number}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    follow_umask(folder)
    write_json(folder / INDEX, {"metadata": {}, "weight_map": weight_map})
    write_json(folder / "config.json", raw)
    drafter.save_calibration(folder)


def _weight_map(target: Path) -> dict[str, str]:
    """File by tensor, of a small target that is in one file, too."""
    if (target / INDEX).exists() or not (target / WEIGHTS).is_file():
        return read_weight_map(target / INDEX)
    with safe_open(target / WEIGHTS, "pt") as file:
        return dict.fromkeys(file.keys(), WEIGHTS)


def _check(drafter: DSparkModel, raw: dict[str, Any], weight_map: dict[str, str], target: Path) -> None:
    config = drafter.config
    found = {name: getattr(config, name, None) for name in HEADS}
    if config.decoder_config.model_type != "deepseek_v4" or found != HEADS or drafter.has_reduced_vocabulary:
        raise ValueError(
            f"DeepSeek-V4's form holds a DeepSeek-V4-shaped drafter of all tokens with {HEADS}, got one of shape "
            f"{shown(config.decoder_config.model_type)} with {found}, draft_vocab_size={config.draft_vocab_size}. "
            "Save it in the flat layout."
        )
    sides = (config.hidden_size, config.num_target_layers), (raw.get("hidden_size"), raw.get("num_hidden_layers"))
    if raw.get("model_type") != "deepseek_v4" or sides[0] != sides[1]:
        raise ValueError(
            f"The drafter is for a DeepSeek-V4 target of (hidden size, layers) {sides[0]}, and {target} is a "
            f"{raw.get('model_type')} one of {sides[1]}. Name the target that it was trained for."
        )
    if any(name.startswith(PREFIX) for name in weight_map):
        raise ValueError(f"{target} has tensors {PREFIX}* already; take them out of its files and its index first.")


def _fields(drafter: DSparkModel, raw: dict[str, Any]) -> dict[str, Any]:
    """What a target's config.json says more when the drafter is inside."""
    num_stages = drafter.config.num_hidden_layers
    fields = {theirs: getattr(drafter.config, ours) for theirs, ours in OWN.items()} | {"n_mtp_layers": num_stages}
    if isinstance(raw.get("compress_ratios"), list):
        fields["compress_ratios"] = raw["compress_ratios"][: raw["num_hidden_layers"]] + [0] * num_stages
    return fields


def _check_shared(drafter: DSparkModel, raw: dict[str, Any], target: Path) -> None:
    """Raise `ValueError` unless the drafter is read again as what it is."""
    ours = drafter.config.decoder_config
    stages = [f"{PREFIX}{number}.norm.weight" for number in range(ours.num_hidden_layers)]
    read = DSparkConfig.from_dict(flat_fields(raw, stages, str(target))).decoder_config
    other = {name for name in _SHARED if getattr(read, name) != getattr(ours, name)}
    if read.rope_parameters["main"] != ours.rope_parameters["main"]:
        other.add("rope_parameters")
    if other:
        raise ValueError(
            f"In DeepSeek-V4's form a drafter shares its target's fields, and this one has its own {sorted(other)}. "
            "Save it in the flat layout."
        )


def engines_of(folder: str | os.PathLike) -> str:
    """Which engines take such a checkpoint, in a sentence.

    Args:
        folder (`str` or `os.PathLike`): What [`write_stages`] wrote.
    """
    stored = read_json(Path(folder) / "config.json").get("quantization_config")
    if not stored:
        return (
            "Target and drafter are unquantised: SGLang builds both so from config.json (its code was read, not run); "
            "vLLM was not tried."
        )
    return (
        f"config.json says that weights are quantised ({stored.get('quant_method', 'fp8')}), and the drafter's are "
        "not: SGLang builds the drafter by that field too and will not take these, vLLM was not tried. dspark_hf "
        "reads them; for an engine, quantise mtp.* as the target is, or write it beside an unquantised target."
    )


def _check_room(folder: Path, num_bytes: int) -> None:
    """Raise `ValueError` unless the disk of a folder, which need not be there yet, takes so many bytes more."""
    place = next(one for one in [folder, *folder.absolute().parents] if one.is_dir())
    free = shutil.disk_usage(place).free
    if num_bytes > free:
        raise ValueError(
            f"Target and drafter take {num_bytes / 10**9:.1f} GB, and the disk of {folder} has {free / 10**9:.1f} GB "
            "free. Choose a folder on a larger one."
        )
