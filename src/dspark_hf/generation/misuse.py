"""Errors where transformers is asked for what it cannot load as asked: they say how it is loaded.

Wrappers of what transformers calls then; all else passes through them untouched.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ENCODINGS = "encoding/encoding_*.py"


def wrap_adjust(original: Callable) -> Callable:
    """Around `adjust_generation_fn`, the `original`, which `from_pretrained()` calls when weights are in place."""
    names = list(inspect.signature(original).parameters)

    def adjust_generation_fn(self, *args, **kwargs):
        given = dict(zip(names[1:], args, strict=False)) | kwargs
        _refuse_drafter(self, given.get("pretrained_model_name_or_path"))
        return original(self, *args, **kwargs)

    return adjust_generation_fn


def wrap_report(original: Callable) -> Callable:
    """Around `log_state_dict_report`, the `original`, which tells of weights that are missing or of other shapes.

    Every class calls it, `AutoModel`'s too, and a drafter's folder is told as that in place of a table of its weights.
    """
    names = list(inspect.signature(original).parameters)

    def log_state_dict_report(*args, **kwargs):
        given = dict(zip(names, args, strict=False)) | kwargs
        _refuse_drafter(given["model"], given["pretrained_model_name_or_path"])
        return original(*args, **kwargs)

    return log_state_dict_report


def wrap_template(original: Callable) -> Callable:
    """Around `get_chat_template` of tokenizers, the `original`, which pipelines and servers render chats with."""

    def get_chat_template(self, *args, **kwargs):
        try:
            return original(self, *args, **kwargs)
        except ValueError as error:
            name = str(self.name_or_path or "")
            has_file = bool(name) and any(Path(name).glob(_ENCODINGS))
            if self.chat_template is not None or not name or (Path(name).is_dir() and not has_file):
                raise
            told = "its chats are" if has_file else "some repositories' chats are"
            raise ValueError(
                f"The tokenizer of {name!r} has no chat template; {told} rendered by code of the repository "
                f"({_ENCODINGS}), which neither AutoTokenizer nor a pipeline fetches or runs. Load it with "
                f"dspark_hf.data.encoding_file.load_tokenizer({name!r}, trust_remote_code=True), and give the model "
                "what dspark_hf.data.chat.prompt_ids(tokenizer, messages) makes of a chat; or set "
                f"tokenizer.chat_template. ({error})"
            ) from error

    return get_chat_template


def _refuse_drafter(model: Any, name: Any) -> None:
    """Raise `ValueError` if a drafter's config was taken for that of an ordinary model."""
    from dspark_hf.modeling.configuration.recognition import is_of_drafter

    # Another library's class that reads drafters, as those of speculators, knows what it does.
    is_ordinary = type(model).__module__.partition(".")[0] == "transformers"
    if is_ordinary and is_of_drafter(vars(model.config)):
        raise ValueError(
            f"{name} holds a drafter, of which {type(model).__name__} would be made with random weights in "
            f"place of what it lacks. Load it with dspark_hf: AutoDrafter.from_pretrained({str(name)!r}), and "
            "pass it to the target's generate() as assistant_model."
        )
