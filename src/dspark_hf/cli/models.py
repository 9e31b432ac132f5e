"""From the names on the command line to models in memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadedModels:
    """A target with its tokenizer and its drafter, on one device in one dtype.

    Args:
        target (`PreTrainedModel`): In evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`): The target's.
        drafter ([`DSparkModel`]): Bound to the target.
    """

    target: Any
    tokenizer: Any
    drafter: Any


def load_models(target: str, drafter: str, *, dtype: str, device: str) -> LoadedModels:
    """Load what the options `--target`, `--drafter`, `--dtype` and `--device` name.

    Args:
        target (`str`): A repository, a folder or `embedded`.
        drafter (`str`): A repository, a folder or `embedded`.
        dtype (`str`): `float32`, `bfloat16` or `float16`.
        device (`str`): As torch writes it, or `auto`.

    Returns:
        [`LoadedModels`].

    Raises:
        `ValueError`: If an option names nothing that exists here, or the two models do not fit each other.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dspark_hf import AutoDrafter
    from dspark_hf.hub.embedded import resolve_drafter, resolve_target

    place = _device(device)
    torch_dtype = getattr(torch, dtype)
    target_path, drafter_path = resolve_target(target), resolve_drafter(drafter)
    tokenizer = AutoTokenizer.from_pretrained(target_path)
    model = AutoModelForCausalLM.from_pretrained(target_path, dtype=torch_dtype).to(place).eval()
    draft_model = AutoDrafter.from_pretrained(drafter_path, dtype=torch_dtype).to(place).eval()
    return LoadedModels(model, tokenizer, draft_model.bind(model))


def check_output(path: Path | None) -> None:
    """Refuse an output file that cannot be written, before the work that fills it.

    Raises:
        `ValueError`: If `path` is a folder or lies under a file.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"--json names a file to write, but {path} is a folder. Add a file name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--json cannot be written at {path}: {error}. Name a folder that can be made.") from None


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device is {name!r}, but torch finds no CUDA device here. Use --device cpu.")
    return device
