"""The model card of a drafter or a composite repository: only what is known appears."""

import hashlib
import os
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from dspark_hf.files import read_text, write_text
from dspark_hf.publishing.contents import ACCEPTANCE, CARD, RELIABILITY
from dspark_hf.publishing.evaluations import metrics
from dspark_hf.publishing.folder import DrafterFolder

from .body import card_body
from .facts import TAGS, CardFacts, named_target
from .plots import plot_acceptance, plot_reliability

_MARK = "<!-- written by dspark_hf, sha256 {digest}: change anything above, and it is yours and kept -->"
_MARK_PATTERN = re.compile(r"\n<!-- written by dspark_hf, sha256 ([0-9a-f]{16}): [^\n]*-->\n*$")


def write_card(folder: str | os.PathLike, facts: CardFacts | None = None, *, overwrite: bool = False) -> bool:
    """Write a drafter's `README.md` and its pictures, unless somebody wrote that file by hand.

    What a generated card that is there says of base model, licence, data sets and tags stays, unless `facts` say
    otherwise.

    Args:
        folder (`str` or `os.PathLike`): The drafter's folder.
        facts ([`CardFacts`], *optional*): What else is known.
        overwrite (`bool`, *optional*, defaults to `False`): Whether the card is made anew from what is known here,
            in place of one that was written by hand too.

    Returns:
        `bool`: Whether it was written.
    """
    drafter, facts, path = DrafterFolder.read(folder), facts or CardFacts(), Path(folder) / CARD
    if path.is_file() and not overwrite:
        text = read_card(path)
        if not is_generated(text):
            return False
        facts = facts.completed(text, keeps_base_model=named_target(drafter.config) is None)
    draw_card(drafter, facts, Path(folder))
    return True


def draw_card(drafter: DrafterFolder, facts: CardFacts, folder: Path) -> list[str]:
    """Write a card and its pictures below a folder.

    Args:
        drafter ([`DrafterFolder`]): What is published.
        facts ([`CardFacts`]): What its files do not tell.
        folder (`Path`): Where to write.

    Returns:
        `list[str]`: Their paths in the repository.
    """
    pictures = draw_pictures(drafter, facts, folder)
    write_text(folder / CARD, card_text(drafter, facts, [path.split("/")[-1] for path in pictures]))
    return [CARD, *pictures]


def draw_pictures(drafter: DrafterFolder, facts: CardFacts, folder: Path) -> list[str]:
    """Draw the pictures of a drafter's evaluations below a folder.

    Args:
        drafter ([`DrafterFolder`]): What is known of the drafter.
        facts ([`CardFacts`]): What else is known.
        folder (`Path`): The repository's root.

    Returns:
        `list[str]`: Their paths in the repository.
    """
    plots = ((ACCEPTANCE, plot_acceptance), (RELIABILITY, plot_reliability))
    drawn = [name for name, plot in plots if plot(folder / facts.subfolder / name, drafter.evaluations)]
    return [f"{facts.subfolder}/{name}".lstrip("/") for name in drawn]


def read_card(path: Path) -> str:
    """The text of a card that is there.

    Args:
        path (`Path`): The card.

    Returns:
        `str`.

    Raises:
        `ValueError`: If it is no text in UTF-8, or too much for a card.
    """
    try:
        return read_text(path)
    except ValueError as error:
        raise ValueError(f"{error} Write it as UTF-8, or take it away: then a card is made.") from None


def card_text(drafter: DrafterFolder, facts: CardFacts, pictures: list[str]) -> str:
    """The card, with the mark by which it is recognised again.

    Args:
        drafter ([`DrafterFolder`]): What is published.
        facts ([`CardFacts`]): What its files do not tell.
        pictures (`list[str]`): Paths of the pictures in the repository.
    """
    base_model = facts.base_model or named_target(drafter.config)
    metadata = card_metadata(drafter, facts, base_model).to_yaml()
    text = f"---\n{metadata}\n---\n\n{card_body(drafter, facts, base_model, pictures)}"
    return marked(text)


def marked(text: str) -> str:
    """The `text` of a card with the mark by which [`is_generated`] recognises it."""
    return f"{text}\n{_MARK.format(digest=_digest(text))}\n"


def card_metadata(drafter: DrafterFolder, facts: CardFacts, base_model: str | None) -> ModelCardData:
    """The card's front matter. `adapter` is the Hub's word for what is added to an unchanged base model.

    Args:
        drafter ([`DrafterFolder`]): What is published.
        facts ([`CardFacts`]): What its files do not tell.
        base_model (`str` or `None`): The target's repository.
    """
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=what,
            dataset_name=what,
            metric_type="tau",
            metric_name=metric,
            metric_value=round(tau, 4),
        )
        for name, record in drafter.evaluations.items()
        for what, metric, tau in metrics(record, name)
    ]
    name = (facts.repo_id or drafter.path.resolve().name).split("/")[-1]
    return ModelCardData(
        base_model=base_model,
        base_model_relation="adapter" if base_model else None,
        datasets=list(facts.datasets) or None,
        library_name="dspark_hf",
        license=facts.license,
        pipeline_tag="text-generation",
        tags=[*TAGS, *(tag for tag in facts.tags if tag not in TAGS)],
        **({"model_name": name, "eval_results": results} if results else {}),
    )


def is_generated(text: str) -> bool:
    """Whether the `text` of a card is as this library wrote it: not written or changed by hand."""
    mark = _MARK_PATTERN.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.rstrip().encode()).hexdigest()[:16]
