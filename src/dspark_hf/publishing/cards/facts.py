"""What a card needs to be told."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from dspark_hf.messages import shown

TAGS = ("dspark", "speculative-decoding", "drafter")


@dataclass(frozen=True)
class CardFacts:
    """What a card needs to know besides the folder's files.

    Args:
        repo_id (`str`, *optional*): The repository it is for; commands name it.
        base_model (`str`, *optional*): The target's repository. By default the one that the drafter's config names, if
            that is one.
        license (`str`, *optional*): The licence's identifier, e.g. `"apache-2.0"`.
        datasets (`tuple[str, ...]`): Hub datasets of the training text.
        tags (`tuple[str, ...]`): Tags besides the usual ones.
        subfolder (`str`): Where the drafter lies in the repository; a composite one has it in `"dspark"`.
        has_target (`bool`): Whether the repository holds the target's weights too.

    Raises:
        `ValueError`: If `repo_id` or `base_model` cannot be a repository's name.
    """

    repo_id: str | None = None
    base_model: str | None = None
    license: str | None = None
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    subfolder: str = ""
    has_target: bool = False

    def __post_init__(self):
        for what, name in (("The repository", self.repo_id), ("The base model", self.base_model)):
            if name is not None and not is_repo_name(name):
                raise ValueError(f"{what} must be named as on the Hub, OWNER/NAME, got {shown(name)}.")

    def completed(self, text: str, *, keeps_base_model: bool) -> "CardFacts":
        """These facts, and where they are silent those of a card that was generated before.

        Args:
            text (`str`): That card.
            keeps_base_model (`bool`): Whether it is about a drafter for the same target.

        Returns:
            [`CardFacts`]: New ones; of the card base model, licence, data sets and tags are taken.
        """
        data = _front_matter(text)
        base_model = data.get("base_model") if keeps_base_model else None
        return replace(
            self,
            base_model=self.base_model or (base_model if is_repo_name(base_model) else None),
            license=self.license or next(iter(_names(data.get("license"))), None),
            datasets=self.datasets or _names(data.get("datasets")),
            tags=self.tags or tuple(tag for tag in _names(data.get("tags")) if tag not in TAGS),
        )


def _front_matter(text: str) -> dict[str, Any]:
    """What stands above a card's `text`; nothing where that is no front matter."""
    try:
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    # The mark of a generated card can be computed by anybody, and then anything stands there.
    except Exception:
        return {}


def _names(value: Any) -> tuple[str, ...]:
    """Names in a card, of which one may stand without a list; what is no text is left out."""
    return tuple(one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def named_target(config: dict[str, Any]) -> str | None:
    """The target's repository, if a drafter's `config` names one."""
    return known_repo(config.get("target_name_or_path"))


def known_repo(name: Any) -> str | None:
    """A `name`, if it is that of a Hub repository; without an owner it may as well be a folder's."""
    return name if is_repo_name(name) and "/" in name and not Path(name).is_dir() else None


def is_repo_name(name: Any) -> bool:
    """Whether a repository on the Hub can have this `name`: no path, whatever lies on this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name is not None
