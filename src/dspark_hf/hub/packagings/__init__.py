"""The packagings of drafters, each a file: how a checkpoint of any becomes one in the flat layout, and back.

A new one is a file with a [`Packaging`] and a line in [`PACKAGINGS`].
"""

import os
from collections.abc import Collection, Mapping
from typing import Any

from dspark_hf.hub.deepseek_v4 import refuse_relatives
from dspark_hf.messages import shown
from dspark_hf.modeling import ALGORITHMS, DraftModel
from dspark_hf.publishing.config_fields import check_fields

from .flat import Flat
from .midlayer import Midlayer
from .packaging import NEUTRAL, Packaging
from .specforge import SpecForge
from .speculators import Speculators
from .stages import Stages

# Asked in this order whether a checkpoint is theirs.
PACKAGINGS: list[Packaging] = [Stages(), Speculators(), Midlayer(), SpecForge(), Flat()]

# What says how large draft layers are; transformers would fill in some model's sizes.
_SIZES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")


def find_packaging(config: Mapping[str, Any], names: Collection[str], where: str) -> Packaging:
    """The packaging of a checkpoint.

    Args:
        config (`Mapping`): The config.json.
        names (`Collection[str]`): Names of the checkpoint's tensors.
        where (`str`): Where the checkpoint lies, for messages.

    Raises:
        `ValueError`: If it is no drafter's, or a field is not of its kind.
    """
    check_fields(config, where)
    packaging = next((one for one in PACKAGINGS if one.is_of(config, names)), None)
    if packaging is None or packaging.name != Stages.name:
        refuse_relatives(config, names, where)
    if packaging is None:
        raise ValueError(
            f"{where} is no DSpark drafter nor another that is read: its config.json has neither target_layer_ids "
            "with block_size (DSpark, DFlash) or ttt_length (EAGLE-3), nor dflash_config, nor speculators_model_type; "
            f"found model_type={shown(config.get('model_type'))}. A target is loaded with AutoModelForCausalLM."
        )
    return packaging


def flat_config(packaging: Packaging, config: Mapping[str, Any], names: Collection[str], where: str) -> dict[str, Any]:
    """The config.json of a packaging in the flat layout.

    Args:
        packaging ([`Packaging`]): The packaging.
        config (`Mapping`): The config.json.
        names (`Collection[str]`): Names of the checkpoint's tensors in the flat layout.
        where (`str`): Where the checkpoint lies, for messages.

    Returns:
        `dict[str, Any]`: The fields; what [`interleaved`] reads is still among them.

    Raises:
        `ValueError`: If it is a drafter of a kind that is not read.
    """
    flat = packaging.flat(config, names, where)
    if flat.get("draft_vocab_size") == flat.get("vocab_size") and "d2t" not in names:
        # Some trainers write the field for a whole vocabulary, too.
        flat.pop("draft_vocab_size", None)
    width = flat.pop("target_hidden_size", None)
    if width is not None and width != flat.get("hidden_size"):
        raise ValueError(
            f"{where} is {flat.get('hidden_size')} wide and its target {width}; a drafter must be as wide as its "
            "target."
        )
    for name, neutral in NEUTRAL.items():
        if flat.get(name) not in (None, neutral):
            raise ValueError(
                f"{where} has {name}={shown(flat[name])} in its config.json, a variant that is not read: its drafts "
                f"would be wrong. Known is {name}={neutral!r}."
            )
    if "ttt_length" not in flat and flat.get("mask_token_id") is None:
        raise ValueError(
            f"{where} does not say which token fills its blocks; add mask_token_id to config.json, as in training."
        )
    if missing := [name for name in _SIZES if flat.get(name) is None]:
        raise ValueError(
            f"{where} does not say how large its layers are: config.json lacks {', '.join(missing)}. Fetch it again."
        )
    return flat


def drafter_class(flat: Mapping[str, Any]) -> type[DraftModel]:
    """The class of a drafter, from its `flat` config.

    Raises:
        `ValueError`: If that says of no class how long a proposal is.
    """
    found = [model_cls for model_cls in ALGORITHMS.values() if model_cls.config_class.describes(flat)]
    if not found:
        raise ValueError("It has neither block_size (DSpark, DFlash) nor ttt_length (EAGLE-3). Fetch it again.")
    return found[0]


def write_packaging(drafter: DraftModel, folder: str | os.PathLike, name: str) -> None:
    """Write a drafter in a packaging, with its calibration.

    Args:
        drafter ([`DraftModel`]): The drafter.
        folder (`str` or `os.PathLike`): The folder to write, empty or absent.
        name (`str`): The packaging's name, e.g. `"speculators"`.

    Raises:
        `ValueError`: If there is no such packaging, or it has no place for this drafter.
    """
    found = {packaging.name: packaging for packaging in PACKAGINGS}
    if name not in found:
        raise ValueError(f"There is no packaging called {name!r}; known are {', '.join(found)}.")
    found[name].write(drafter, folder)
    drafter.save_calibration(folder)


__all__ = ["PACKAGINGS", "Packaging", "drafter_class", "find_packaging", "flat_config", "write_packaging"]
