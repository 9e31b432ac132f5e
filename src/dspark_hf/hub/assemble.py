"""A composite folder from a target's name and a drafter's folder, without generating anything."""

import os
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dspark_hf.files import copy_files, follow_umask
from dspark_hf.modeling.borrowing import check_fit
from dspark_hf.publishing.cards.card import is_generated, read_card
from dspark_hf.publishing.contents import CARD, SUBFOLDER, files_to_push

from .composite import save_reference
from .load import AutoDrafter

_CHATS = "encoding/encoding_*.py"


def assemble(
    folder: str | os.PathLike,
    target: str,
    drafter: str | os.PathLike,
    *,
    name: str | None = None,
    include_target: bool = False,
) -> None:
    """Write target and drafter into one folder.

    What belongs to the drafter comes along with it ([`~publishing.contents.files_to_push`]): calibration,
    evaluations, a card that was written by hand.

    Args:
        folder (`str` or `os.PathLike`): The folder to write, empty or absent.
        target (`str`): The target's repository or folder.
        drafter (`str` or `os.PathLike`): The drafter's folder.
        name (`str`, *optional*): What the folder calls the target, if it is not to hold its weights; `target` itself
            by default.
        include_target (`bool`, *optional*, defaults to `False`): Whether the target's weights are copied; otherwise
            the folder names it.

    Raises:
        `ValueError`: If the two do not fit.
    """
    folder, drafter = Path(folder), Path(drafter)
    config, model = AutoConfig.from_pretrained(target), AutoDrafter.from_pretrained(drafter)
    # Before anything large is fetched: sizes and names.
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config)
    outline.name_or_path = target
    check_fit(model.config, outline, check_name=not include_target)
    if include_target:
        whole = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
        check_fit(model.config, whole)
        whole.save_pretrained(folder)
        follow_umask(folder)
    else:
        save_reference(folder, config, name or target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    tokenizer.save_pretrained(folder)
    if tokenizer.chat_template is None:
        # Code of the target that renders its chats; it is not run.
        source = Path(target if Path(target).is_dir() else snapshot_download(target, allow_patterns=_CHATS))
        copy_files(source, [path.relative_to(source) for path in source.glob(_CHATS)], folder)
    files = set(files_to_push(drafter))
    if CARD in files and is_generated(read_card(drafter / CARD)):
        files.remove(CARD)  # the root's card says it all
    copy_files(drafter, files, folder / SUBFOLDER)
