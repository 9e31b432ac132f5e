"""What a checkpoint says of itself: its packaging, and the class and config of the drafter in it."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from dspark_hf.files import read_json
from dspark_hf.messages import shown
from dspark_hf.modeling import DraftModel
from dspark_hf.publishing.contents import CONFIG
from dspark_hf.publishing.weight_index import Stored, read_stored

from .deepseek_v4 import has_stages
from .outline import Difference, compare, outline
from .packagings import drafter_class, find_packaging, flat_config
from .packagings.interleaved import without_flags
from .packagings.renaming import without_wrappers

_LONGEST_REASON = 600


@dataclass(frozen=True)
class Described:
    """A drafter's checkpoint, by its config.json and the names of its tensors.

    Attributes:
        where (`str`): Where it lies, for messages.
        names (`dict[str, str]`): What each of its tensors is called in the flat layout.
        flat (`dict`): Its config.json in the flat layout.
        model_cls (`type[DraftModel]`): The drafter's class.
        config (`DraftConfig`): Its config.
        is_in_stages (`bool`): Whether it is inside a DeepSeek-V4 target.
    """

    where: str
    names: dict[str, str]
    flat: dict[str, Any]
    model_cls: type[DraftModel]
    config: PreTrainedConfig
    is_in_stages: bool

    @classmethod
    def of(cls, raw: Mapping[str, Any], stored: Collection[str], where: str) -> "Described":
        """Read what it says.

        Args:
            raw (`Mapping`): Its config.json.
            stored (`Collection[str]`): The names of its tensors, as they are stored.
            where (`str`): Where it lies.

        Raises:
            `ValueError`: If it is no drafter's, or cannot be used; the message names the field.
        """
        plain = without_wrappers(stored, where)
        for name in ("dtype", "torch_dtype"):
            if raw.get(name) not in (None, "auto") and not is_dtype(raw[name]):
                raise ValueError(f"{where}: {name} in config.json is no torch dtype, got {shown(raw[name])}.")
        with _told_of(where):
            packaging = find_packaging(raw, plain.values(), where)
            names = {name: packaging.rename(short) for name, short in plain.items()}
            flat = flat_config(packaging, raw, set(names.values()), where)
            model_cls = drafter_class(flat)
            config = model_cls.config_class.from_dict(without_flags(flat))
        return cls(where, names, flat, model_cls, config, has_stages(raw, names.values()))

    @property
    def own_embeddings(self) -> bool:
        """Whether it holds copies of the target's embedding and head; without them the drafter borrows later."""
        return {"embed_tokens.weight", "lm_head.weight"} <= set(self.names.values())

    def difference(self, stored: Mapping[str, Stored]) -> Difference:
        """Where its tensors are not those that its config asks for; of a drafter that stands alone.

        Args:
            stored (`Mapping`): The tensors of its files.

        Raises:
            `ValueError`: If no drafter can be of its sizes.
        """
        model = outline(self.model_cls, self.config, self.where, self.own_embeddings)
        asked = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return compare(self.model_cls, asked, stored, self.names)


def faults(folder: Path) -> list[str]:
    """Where the tensors of a drafter that stands alone are not those that its config asks for.

    Args:
        folder (`Path`): Its folder.

    Returns:
        `list[str]`: Phrases that go on after its name.

    Raises:
        `ValueError`: If its config cannot be used, or a file is missing or damaged.
    """
    stored = read_stored(folder)
    return Described.of(read_json(folder / CONFIG), stored, str(folder)).difference(stored).phrases()


def is_dtype(name: Any) -> bool:
    """Whether a `name` is a torch dtype's."""
    return isinstance(getattr(torch, str(name).removeprefix("torch."), None), torch.dtype)


def short(error: Exception) -> str:
    """An `error` in one line, at a length that can be read: it may quote a field of any length."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."


@contextmanager
def _told_of(where: str) -> Iterator[None]:
    """Whatever a config.json ends in, as an error that says whose it is."""
    try:
        yield
    except (OSError, ImportError):
        raise
    # Fields may be of any type, and meet code that expects its own.
    except Exception as error:
        if type(error) is ValueError and where in str(error):
            raise
        raise ValueError(f"{where}: config.json cannot be used: {short(error)}") from error
