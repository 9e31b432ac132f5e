"""Which files of a folder are a drafter's: the one list of what may be uploaded. Everything else stays where it is."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from dspark_hf.messages import shown

from .weight_index import INDEX, WEIGHTS, read_weight_map

CONFIG, CALIBRATION, TRAINING, EVALUATIONS, CARD = (
    "config.json",
    "calibration.json",
    "training.json",
    "evaluations",
    "README.md",
)
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ACCEPTANCE, RELIABILITY = "acceptance.png", "reliability.png"
# What is written aside first has a longer name, and file systems end at 255 bytes.
_LONGEST_NAME = 230
# Where a composite repository has its drafter.
SUBFOLDER = "dspark"

# And the shards that the index names.
_MODEL = (CONFIG, "generation_config.json", WEIGHTS, INDEX)
_WORDS = (CARD, "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")
# What is true of one set of weights only.
_RECORDS = (CALIBRATION, TRAINING, f"{EVALUATIONS}/[!.]*.json")
RECORDS = (*_RECORDS, ACCEPTANCE, RELIABILITY)
# Pictures are drawn from the evaluations that go: those that lie there may be of others.
DRAFTER = (*_MODEL, ADAPTER_CONFIG, ADAPTER_WEIGHTS, *_RECORDS, *_WORDS)
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json", "additional_chat_templates/[!.]*.jinja", "processor_config.json",
    "preprocessor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
# The root of a composite repository; code is there only where the target came with some.
_CODE = ("configuration_*.py", "modeling_*.py", "tokenization_*.py", "encoding/encoding_*.py")
TARGET = (*_MODEL, *_WORDS, *TOKENIZER, *_CODE)
# What a trainer needs beside the drafter to go on from a checkpoint. Its arguments are no part of it.
RESUMING = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_[0-9]*.pth")


def files_to_push(folder: str | os.PathLike, *, tokenizer: bool = False) -> list[str]:
    """Paths below a folder, with `/`, that are part of a drafter or of a composite repository.

    Args:
        folder (`str` or `os.PathLike`): The folder. With a drafter in `dspark/` it is a composite one.
        tokenizer (`bool`, *optional*, defaults to `False`): Whether a drafter's tokenizer files go too; a composite
            repository always has the target's.

    Raises:
        `ValueError`: If one of them is a link, which could lead to any file of this machine, or has a name that other
            machines cannot show or write.
    """
    folder = Path(folder)
    is_composite = (folder / SUBFOLDER / CONFIG).is_file()
    evaluations_folder(folder / SUBFOLDER if is_composite else folder)
    if is_composite:
        patterns = (*TARGET, *(f"{SUBFOLDER}/{pattern}" for pattern in DRAFTER))
        return matching(folder, (*patterns, *_shards(folder), *_shards(folder, f"{SUBFOLDER}/")))
    return matching(folder, (*DRAFTER, *(TOKENIZER if tokenizer else ()), *_shards(folder)))


def checkpoint_files(folder: str | os.PathLike) -> list[str]:
    """Paths below a `folder`, a trainer's checkpoint, that a drafter is loaded and its training gone on from."""
    return matching(Path(folder), (*_MODEL, ADAPTER_CONFIG, ADAPTER_WEIGHTS, *RESUMING, *_shards(Path(folder))))


def left_behind(folder: str | os.PathLike, files: Iterable[str]) -> list[str]:
    """Names directly in a `folder` of which nothing is among the `files` uploaded, folders with a `/` at the end."""
    sent = {path.split("/")[0] for path in files}
    others = [path for path in sorted(Path(folder).iterdir()) if path.name not in sent]
    return [f"{path.name}/" if path.is_dir() else path.name for path in others]


def matching(folder: Path, patterns: Iterable[str]) -> list[str]:
    """Files of a `folder` that fit one of the `patterns`, sorted.

    Raises:
        `ValueError`: If one of them is a link, or has a name that other machines cannot show or write.
    """
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    for path in sorted(found):
        if wrong := wrong_name(path.name):
            raise ValueError(f"In {path.parent} the name {shown(os.fsencode(path.name))} {wrong}. Rename it.")
        link = next((one for one in (path, *path.parents) if folder in one.parents and one.is_symlink()), None)
        if link is not None:
            raise ValueError(
                f"{link} is a link, to {os.readlink(link)}: what it leads to need not be a drafter's. Put the file "
                "itself there (`cp -rL` copies a folder without links), or remove it."
            )
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def wrong_name(name: str) -> str | None:
    """What is wrong with a file's `name` on the Hub and on other machines; None if nothing is."""
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        return "is not UTF-8, as those on the Hub are"
    if not name.isprintable():
        return "has characters that cannot be seen"
    return f"has {size} bytes, more than {_LONGEST_NAME}" if size > _LONGEST_NAME else None


def evaluations_folder(folder: Path) -> Path:
    """Where the evaluations of the drafter in a `folder` are, or will be.

    Raises:
        `ValueError`: If something else is in that place.
    """
    path = folder / EVALUATIONS
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is no folder, which a drafter's evaluations are kept in. Rename or remove it.")
    return path


def _shards(folder: Path, inside: str = "") -> list[str]:
    """Paths of the files that the index of a checkpoint names, as patterns."""
    index = folder / inside / INDEX
    if not index.is_file():
        return []
    return [f"{inside}{glob.escape(shard)}" for shard in sorted(set(read_weight_map(index).values()))]
