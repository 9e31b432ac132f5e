"""What a card needs to be told."""

from dataclasses import dataclass


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
    """

    repo_id: str | None = None
    base_model: str | None = None
    license: str | None = None
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    subfolder: str = ""
    has_target: bool = False
