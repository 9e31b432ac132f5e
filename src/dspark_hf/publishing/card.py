"""The model card of a drafter or a composite repository: only what is known appears."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from dspark_hf.files import write_text

from .body import card_body
from .facts import CardFacts
from .folder import CARD, DrafterFolder
from .plots import ACCEPTANCE, RELIABILITY, plot_acceptance, plot_reliability

TAGS = ("dspark", "speculative-decoding", "drafter")
_MARK = "<!-- written by dspark_hf, sha256 {digest}: change anything above, and it is yours and kept -->"
_MARK_PATTERN = re.compile(r"\n<!-- written by dspark_hf, sha256 ([0-9a-f]{16}): [^\n]*-->\n*$")


def write_card(
    folder: str | os.PathLike, facts: CardFacts | None = None, *, overwrite: bool = False, root: Path | None = None
) -> bool:
    """Write `README.md` and its pictures, unless somebody wrote that file by hand.

    Args:
        folder (`str` or `os.PathLike`): The drafter's folder.
        facts ([`CardFacts`], *optional*): What else is known.
        overwrite (`bool`, *optional*, defaults to `False`): Whether a file that was written or changed by hand is
            replaced.
        root (`Path`, *optional*): Where the card goes, for a composite repository; the folder itself by default.

    Returns:
        `bool`: Whether it was written.
    """
    drafter, facts = DrafterFolder.read(folder), facts or CardFacts()
    path = Path(root or folder) / CARD
    if path.is_file() and not overwrite and not is_generated(path.read_text(encoding="utf-8")):
        return False
    pictures = []
    for name, plot in ((ACCEPTANCE, plot_acceptance), (RELIABILITY, plot_reliability)):
        if plot(drafter.path / name, drafter.evaluations):
            pictures.append(name)
    write_text(path, card_text(drafter, facts, pictures))
    return True


def card_text(drafter: DrafterFolder, facts: CardFacts, pictures: list[str]) -> str:
    """The card, with the mark by which it is recognised again."""
    base_model = facts.base_model or known_repo(drafter.config.get("target_name_or_path"))
    metadata = card_metadata(drafter, facts, base_model).to_yaml()
    text = f"---\n{metadata}\n---\n\n{card_body(drafter, facts, base_model, pictures)}"
    return f"{text}\n{_MARK.format(digest=_digest(text))}\n"


def card_metadata(drafter: DrafterFolder, facts: CardFacts, base_model: str | None) -> ModelCardData:
    """The card's front matter. `adapter` is the Hub's word for what is added to an unchanged base model."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=name,
            metric_type="tau",
            metric_name="mean tokens per round",
            metric_value=round(record["tau"], 4),
        )
        for name, record in drafter.evaluations.items()
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
    """Whether a card is as this library wrote it: not written or changed by hand."""
    mark = _MARK_PATTERN.search(text)
    return mark is not None and mark[1] == _digest(text[: mark.start()])


def known_repo(name: Any) -> str | None:
    """A name, if it can be that of a Hub repository; without an owner it may as well be a folder's."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).is_dir():
        return None
    return name


def _digest(text: str) -> str:
    return hashlib.sha256(text.rstrip().encode()).hexdigest()[:16]
