"""Whether the repository that a card names as its base model can be the drafter's target."""

from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError
from transformers.utils import logging

from dspark_hf.files import read_json

from .contents import CONFIG

logger = logging.get_logger(__name__)
_MUST_AGREE = (
    ("hidden size", "hidden_size", "hidden_size"),
    ("vocabulary", "vocab_size", "vocab_size"),
    ("number of layers", "num_target_layers", "num_hidden_layers"),
)


def check_base_model(config: dict[str, Any], base_model: str, token: str | bool | None = None) -> None:
    """Check a base model by its `config.json`; where that cannot be read, a warning says so.

    Args:
        config (`dict`): The drafter's `config.json`.
        base_model (`str`): The target's repository.
        token (`str` or `bool`, *optional*): Token for a private one.

    Raises:
        `ValueError`: If the sizes differ.
    """
    try:
        target = read_json(hf_hub_download(base_model, CONFIG, token=token))
    except (OSError, HTTPError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        logger.warning(f"{base_model} was not checked to be the target: its {CONFIG} cannot be read ({reason})")
        return
    text = target.get("text_config")
    target |= text if isinstance(text, dict) else {}
    for what, ours, theirs in _MUST_AGREE:
        if None not in (config.get(ours), target.get(theirs)) and config[ours] != target[theirs]:
            raise ValueError(
                f"{base_model} cannot be the base model: its {what} is {target[theirs]}, and this drafter was made "
                f"for one with {config[ours]}. Name the target that it was trained for."
            )
