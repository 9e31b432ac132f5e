"""What tensors a drafter's config asks for, against what a checkpoint holds: told by the files' headers, before memory
is taken for any."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from dspark_hf.modeling import DraftModel
from dspark_hf.modeling.configuration.drafter import DraftConfig
from dspark_hf.publishing.weight_index import Stored

# As safetensors writes them.
WEIGHT_DTYPES = ("BF16", "F16", "F32", "F64")
# Tables of tokens, which are checked by what they say.
_TABLES = ("t2d", "d2t")
_NUM_TOLD, _NUM_LISTED = 3, 8  # of tensors, in an error and in a list


@dataclass(frozen=True)
class Difference:
    """Where a checkpoint is not what its config asks for; tensors by the names that they are stored under.

    Attributes:
        missing (`list[str]`): Tensors that it lacks, in the flat layout.
        misshapen (`dict[str, tuple]`): Those of another shape: what is there, and what is asked for.
        unread (`dict[str, str]`): Those of a type that no weight has, as safetensors writes it.
        unexplained (`list[str]`): Those that the config does not ask for.
    """

    missing: list[str] = field(default_factory=list)
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    unexplained: list[str] = field(default_factory=list)

    def phrases(self) -> list[str]:
        """What differs, phrases that go on after the checkpoint's name."""
        kinds = (
            [f"it lacks the tensor {name}" for name in self.missing],
            [
                f"{name} has the shape {list(found)}, and its config.json asks for {list(asked)}"
                for name, (found, asked) in self.misshapen.items()
            ],
            [f"{name} is stored as {dtype}, which no weight is" for name, dtype in self.unread.items()],
            [f"its config.json does not explain the tensor {name}" for name in self.unexplained],
        )
        more = [[f"so with {len(kind) - _NUM_LISTED} more"] if len(kind) > _NUM_LISTED else [] for kind in kinds]
        return [told for kind, rest in zip(kinds, more, strict=True) for told in kind[:_NUM_LISTED] + rest]

    def check(self, where: str) -> None:
        """Check that nothing differs.

        Args:
            where (`str`): Where the checkpoint lies.

        Raises:
            `ValueError`: If something does; the message names one tensor.
        """
        if self.unread:
            name, dtype = next(iter(self.unread.items()))
            raise ValueError(
                f"{name} in {where} is stored as {dtype}, and weights must be {', '.join(WEIGHT_DTYPES)}. Write them "
                "in one of these; quantised weights are read of DeepSeek-V4's releases alone."
            )
        if self.misshapen:
            name, (found, asked) = next(iter(self.misshapen.items()))
            raise ValueError(
                f"The weights in {where} do not fit its config.json: {name} in {where} has the shape {found}, and "
                f"config.json asks for {asked}{_and_more(self.misshapen)}. Fetch it again, or correct config.json."
            )
        if self.missing:
            raise ValueError(
                f"The checkpoint {where} lacks {len(self.missing)} tensors that its config.json asks for, e.g. "
                f"{self.missing[:_NUM_TOLD]}. Fetch it again, or correct config.json."
            )
        if self.unexplained:
            raise ValueError(
                f"The checkpoint {where} holds {len(self.unexplained)} tensors that its config.json does not explain, "
                f"e.g. {self.unexplained[:_NUM_TOLD]}; without them drafts would be wrong. Correct config.json."
            )


def outline(model_cls: type[DraftModel], config: DraftConfig, where: str, own_embeddings: bool = False) -> DraftModel:
    """A drafter without numbers, which takes no memory: its tensors are those that its config asks for.

    Args:
        model_cls (`type[DraftModel]`): The drafter's class.
        config ([`DraftConfig`]): Its config.
        where (`str`): Where its checkpoint lies, for messages.
        own_embeddings (`bool`, *optional*, defaults to `False`): Whether copies of the target's embedding and head are
            there.

    Raises:
        `ValueError`: If there can be no such drafter, of these sizes for one.
    """
    try:
        with torch.device("meta"):
            return model_cls(copy.deepcopy(config), own_embeddings=own_embeddings)
    except (OSError, ImportError):
        raise
    # Torch counts the numbers of a tensor in 64 bits, sizes may not divide each other: it ends in any error.
    except Exception as error:
        fields = vars(config.decoder_config)
        sizes = {name: value for name, value in fields.items() if type(value) is int and not name.startswith("_")}
        largest = sorted(sizes, key=sizes.get, reverse=True)[:_NUM_TOLD]
        told, reason = ", ".join(f"{name}={sizes[name]}" for name in largest), " ".join(str(error).split())
        raise ValueError(
            f"{where}: config.json asks for a drafter that cannot be made ({type(error).__name__}: {reason:.200}); "
            f"its largest sizes are {told}. Correct it, or fetch the drafter again."
        ) from error


def compare(
    model_cls: type[DraftModel],
    asked: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, Stored],
    names: Mapping[str, str],
) -> Difference:
    """Compare what a config asks for with what is stored.

    Args:
        model_cls (`type[DraftModel]`): The drafter's class.
        asked (`Mapping`): Shapes by name, as of [`outline`].
        stored (`Mapping`): The tensors of the files.
        names (`Mapping[str, str]`): What each of them is called in the flat layout.

    Returns:
        [`Difference`]: Copies of the target's tensors, which are not read, are none.
    """
    difference = Difference(missing=sorted(asked.keys() - set(names.values())))
    for name, (shape, dtype) in sorted(stored.items()):
        plain = names[name]
        if plain not in asked:
            if not any(re.search(pattern, plain) for pattern in model_cls._keys_to_ignore_on_load_unexpected):
                difference.unexplained.append(name)
        elif shape != asked[plain]:
            difference.misshapen[name] = (shape, asked[plain])
        elif dtype not in WEIGHT_DTYPES and plain not in _TABLES:
            difference.unread[name] = dtype
    return difference


def _and_more(found: Mapping) -> str:
    return f", and {len(found) - 1} more do not fit" if len(found) > 1 else ""


def check_numbers(drafter: DraftModel, where: str) -> None:
    """Check that every weight is a number.

    Args:
        drafter ([`DraftModel`]): The drafter, loaded.
        where (`str`): Where it was loaded from, for messages.

    Raises:
        `ValueError`: If one is infinite or none.
    """
    for name, weight in drafter.named_parameters():
        if weight.is_meta or not weight.is_floating_point() or weight.itemsize < 2 or not weight.numel():
            continue
        # Takes no memory, and hands on what is no number.
        if not all(bound.isfinite() for bound in torch.aminmax(weight.detach())):
            raise ValueError(
                f"The weight {name} in {where} has entries that are no finite numbers (NaN or infinite): drafts would "
                "be nonsense. The training that made it diverged, or the file is damaged; use an earlier checkpoint."
            )
