"""From the names on the command line to models in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# As torch writes them, and their short names.
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
# Files of tokenizers.
_TOKENIZERS = ("*tok*", "*vocab*", "*.model", "*.tiktoken", "*.gguf", "encoding/*")


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


def load_models(
    target: str, drafter: str, *, dtype: str, device: str, trust_remote_code: bool = False, **template_options: Any
) -> LoadedModels:
    """Load what the options `--target`, `--drafter`, `--dtype` and `--device` name.

    Args:
        target (`str`): A repository, a folder or `embedded`.
        drafter (`str`): A repository, a folder or `embedded`.
        dtype (`str`): `float32`, `bfloat16` or `float16`, or a short name of one.
        device (`str`): As torch writes it, or `auto`.
        trust_remote_code (`bool`): Whether code of the target's repository may run.
        template_options: As of [`load_target`].

    Returns:
        [`LoadedModels`].

    Raises:
        `ValueError`: If an option names nothing that exists here, the two models do not fit each other, or the chat
            template does not know an option.
    """
    dtype = check_dtype(dtype)
    from dspark_hf.hub.embedded import resolve_drafter

    drafter = resolve_drafter(drafter)
    model, tokenizer = load_target(
        target, dtype=dtype, device=device, trust_remote_code=trust_remote_code, **template_options
    )
    return LoadedModels(model, tokenizer, load_drafter(drafter, model, dtype=dtype))


def load_drafter(drafter: str, target: Any, *, dtype: str, check_name: bool = True) -> Any:
    """Load a drafter, in evaluation mode, and bind it to a target.

    Args:
        drafter (`str`): A repository, a folder or `embedded`.
        target (`PreTrainedModel`): The target.
        dtype (`str`): As of [`load_models`].
        check_name (`bool`, *optional*, defaults to `True`): Whether a drafter made for another target is refused.
    """
    from dspark_hf import AutoDrafter
    from dspark_hf.hub.embedded import resolve_drafter

    model = AutoDrafter.from_pretrained(resolve_drafter(drafter), dtype=check_dtype(dtype)).to(target.device).eval()
    return model.bind(target, check_name=check_name)


def load_target(
    target: str,
    *,
    dtype: str,
    device: str,
    attention: str | None = None,
    trust_remote_code: bool = False,
    **template_options: Any,
) -> tuple[Any, Any]:
    """Load a target, in evaluation mode, and its tokenizer; arguments as of [`load_models`].

    `attention` is transformers' `attn_implementation`; `template_options`, which are refused where they make no
    difference, are those of [`~data.template_options.check_template_options`].
    """
    from transformers import AutoModelForCausalLM

    from dspark_hf.data.template_options import check_template_options

    place = check_device(device)
    # The small one first: whether its chats can be rendered is told before the target is fetched.
    tokenizer = load_target_tokenizer(target, trust_remote_code=trust_remote_code)
    check_template_options(tokenizer, **template_options)
    with target_place(target, trust_remote_code) as (path, trust):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention, **trust)
    return model.to(place).eval(), tokenizer


def load_target_tokenizer(target: str, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a `target`, with what renders its chats; its own code runs if `trust_remote_code`.

    Raises:
        `ValueError`: If that is code which may not run, transformers knows no such model, or there is no tokenizer.
    """
    from transformers import AutoConfig

    from dspark_hf.data.encoding_file import load_tokenizer

    with target_place(target, trust_remote_code) as (path, trust):
        # A model that transformers does not know is told as such here; its tokenizers would ask for odd fields.
        AutoConfig.from_pretrained(path, **trust)
        try:
            return load_tokenizer(path, **trust)
        except (OSError, ValueError, ImportError) as error:
            folder = Path(path)
            if not folder.is_dir() or any(True for kind in _TOKENIZERS for _ in folder.glob(kind)):
                raise
            # Libraries would have a package installed that reads a file which is not there.
            raise ValueError(
                f"{target} has no files of a tokenizer, which a target needs. Save it there: "
                f"tokenizer.save_pretrained({str(target)!r})."
            ) from error


@contextmanager
def target_place(target: str, trust_remote_code: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a `target` lies, and the arguments with which its own code may run, but no other repository's.

    Args:
        target (`str`): A repository, a folder, or `embedded`.
        trust_remote_code (`bool`): Whether its code may run.

    Raises:
        `ValueError`: If code of another repository would run, or the Hub does not answer.
    """
    from transformers import PreTrainedConfig

    from dspark_hf.hub.embedded import resolve_target
    from dspark_hf.hub.trust import trusting
    from dspark_hf.publishing.hub_errors import explained_load

    path = resolve_target(target)
    with explained_load(target):
        raw = PreTrainedConfig.get_config_dict(path)[0] if trust_remote_code else {}
        with trusting((path,), path, raw, {"trust_remote_code": trust_remote_code}) as trust:
            yield path, trust


def check_dtype(dtype: str, option: str = "--dtype", *, auto: bool = False) -> str:
    """The dtype of models that an option names, as torch writes it.

    Args:
        dtype (`str`): What was given.
        option (`str`, *optional*, defaults to `"--dtype"`): The option, for the message.
        auto (`bool`, *optional*, defaults to `False`): Whether it may be `auto`, that of the checkpoint.

    Raises:
        `ValueError`: If it names none.
    """
    allowed = (*DTYPES, "auto") if auto else (*DTYPES,)
    full = next((name for name, short in DTYPES.items() if dtype == short), dtype)
    if full not in allowed:
        raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {dtype!r}.")
    return full


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


def check_device(name: str) -> Any:
    """The `torch.device` that `--device` names.

    Args:
        name (`str`): Its value.

    Raises:
        `ValueError`: If there is none of that name here.
    """
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
