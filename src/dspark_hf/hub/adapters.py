"""Adapters of drafters: a folder with the few weights that were trained, and the name of the drafter below."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from dspark_hf.files import read_json
from dspark_hf.messages import cut_middle
from dspark_hf.publishing.contents import ADAPTER_CONFIG, ADAPTER_WEIGHTS

from .adapter_config import check_config
from .adapter_shapes import check_shapes

_PICKLE = "adapter_model.bin"


def base_of_adapter(path: str, where: str) -> str:
    """The drafter that an adapter was trained on, as its config names it.

    Args:
        path (`str`): The adapter's config file.
        where (`str`): Where the adapter lies, for messages.

    Raises:
        `ValueError`: If the config is not readable, names none, asks for Megatron's layers, or has fields that cannot
            be right.
    """
    config = read_json(path)
    if config.get("megatron_config"):
        # PEFT imports the module that such an adapter names.
        raise ValueError(f"The adapter in {where} has a megatron_config, which is not read; remove it from {path}.")
    name = config.get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise ValueError(
            f"The adapter in {where} does not say which drafter it was trained on. Load that drafter yourself: "
            "PeftModel.from_pretrained(drafter, adapter)."
        )
    try:
        check_config(config, path)
    except ValueError as error:
        raise ValueError(f"The adapter in {where} cannot be used. {error}") from error
    return name


def check_weights(weights: str | None, where: str) -> None:
    """Check that an adapter's weights are safetensors.

    Args:
        weights (`str` or `None`): Its safetensors file, if there is one.
        where (`str`): The adapter, in messages.

    Raises:
        `ValueError`: If they are not.
    """
    if weights is None:
        raise ValueError(
            f"There is no {ADAPTER_WEIGHTS} in {where}; a pickle ({_PICKLE}) is not read. Write one as "
            f"safetensors once: safetensors.torch.save_file(torch.load({_PICKLE!r}, weights_only=True), "
            f"{ADAPTER_WEIGHTS!r})."
        )


def check_peft(folder: str) -> None:
    """Check that transformers can load a target from a `folder`, if an adapter is in it.

    Raises:
        `ValueError`: If transformers asks for a newer PEFT than is installed.
    """
    if not Path(folder, ADAPTER_CONFIG).is_file():
        return
    from transformers.integrations import peft as integration
    from transformers.utils.peft_utils import check_peft_version

    try:
        check_peft_version(integration.MIN_PEFT_VERSION)
    except ValueError:
        raise ValueError(
            f"The target in {folder} is an adapter, which this release of transformers loads with PEFT "
            f"{integration.MIN_PEFT_VERSION} or newer, and {version('peft')} is installed. Upgrade PEFT, or save "
            f"it whole: PeftModel.from_pretrained(base, {folder!r}).merge_and_unload().save_pretrained(...)."
        ) from None


def put_on(
    drafter: Any, repo_or_dir: str, files: tuple[str, str], config_path: str | None, where: str, hub: dict[str, Any]
) -> Any:
    """Put a saved adapter on its drafter.

    Args:
        drafter ([`DSparkModel`]): The drafter below.
        repo_or_dir (`str`): The adapter.
        files (`tuple(str, str)`): Its config and its weights.
        config_path (`str`, *optional*): The drafter's config as training left it, which names the target.
        where (`str`): The adapter, in messages.
        hub (`dict`): `revision`, `token`, `subfolder`, ...

    Returns:
        `PeftModel`: Works wherever a drafter does.

    Raises:
        `ValueError`: If the adapter does not fit the drafter.
    """
    from peft import PeftModel  # takes a second, and few drafters have adapters

    if config_path is not None:
        trained = type(drafter.config).from_pretrained(Path(config_path).parent)
        drafter.config.target_name_or_path = trained.target_name_or_path
        drafter.config.target_fingerprint = trained.target_fingerprint
    try:
        check_shapes(drafter, *files, where)
        return PeftModel.from_pretrained(drafter, repo_or_dir, **hub).eval()
    except (OSError, ImportError):
        raise
    # What PEFT makes of a field that it does not expect may be any error.
    except Exception as error:
        raise ValueError(
            f"The adapter in {where} does not fit its drafter ({ADAPTER_CONFIG}): {type(error).__name__}: "
            f"{cut_middle(str(error))} Load the drafter that it was trained on, and call "
            "PeftModel.from_pretrained(drafter, adapter)."
        ) from error
