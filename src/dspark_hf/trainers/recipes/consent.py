"""What a recipe may not decide for who runs it: a recipe is a file, and files come from anywhere."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dspark_hf.messages import cut, shown

# Folders that a run writes to.
_WRITTEN = ("training.output_dir", "training.cache_dir", "cache")
# Places on the Hub, besides the repository that is shown and asked about.
_PLACES = ("training.trackio_space_id", "training.trackio_bucket_id", "training.trackio_static_space_id")


def check_no_token(training: Mapping[str, Any]) -> None:
    """Check that `training` arguments of a recipe, or of a command line, bring no token.

    Raises:
        `ValueError`: If one does.
    """
    for name, value in training.items():
        if str(name).endswith("_token") and value is not None:
            raise ValueError(
                f"A recipe does not take tokens, but training.{name} is one: whoever reads the file could use it, and "
                "who runs it would act for its author. Log in with `hf auth login`, or set HF_TOKEN, instead."
            )


def check_consent(content: Mapping[str, Any], asked: Collection[str], where: str) -> None:
    """Check that what a recipe's file says stays within the working folder, unless the command line says it too.

    Args:
        content (`Mapping`): The recipe with what replaces it.
        asked (`Collection[str]`): Keys that the command line gives.
        where (`str`): The file, for messages.

    Raises:
        `ValueError`: If a folder is not named by text, or one that would be written to is the working folder, a home
            folder, or outside of the working folder; or if figures would be uploaded to a place of the file's choice.
    """
    for key in (*_WRITTEN, *_PLACES):
        section, _, name = key.rpartition(".")
        value = ((content.get(section) or {}) if section else content).get(name)
        if value in (None, "") or key in asked or section in asked:
            continue
        if not isinstance(value, str):
            raise ValueError(f"{where}: {key} must be text, got {shown(value)}.")
        if key in _PLACES:
            raise ValueError(
                f"{where} sends figures to {shown(value)} ({key}). Give that on the command line if you want it: "
                f"{name}={value}."
            )
        if reason := _out_of_bounds(value):
            raise ValueError(
                f"{where} writes to {shown(value)} ({key}), which is {reason}. A recipe writes inside the folder that "
                f"it is run in; for any other place give it on the command line: {name}={cut(str(value))}."
            )


def _out_of_bounds(folder: str) -> str | None:
    """Why a file may not choose a folder; None if it may."""
    if "\0" in folder:
        return "no name of a folder"
    # As the trainer's arguments read it: `~` and a name that nobody has is a folder of that name.
    path, here, home = Path(os.path.expanduser(folder)).resolve(), Path.cwd().resolve(), Path.home().resolve()
    if path == here:
        return "the working folder itself"
    if path == home or path in home.parents:
        return "a home folder"
    if here not in path.parents:
        return "outside the working folder"
    return None
