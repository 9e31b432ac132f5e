"""What a repository holds before a push, and what of it stays."""

import fnmatch
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RevisionNotFoundError

from dspark_hf.files import read_json, read_text

from .contents import CARD, CONFIG, RECORDS

_WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Repository:
    """A repository at a revision, before a commit.

    Args:
        api (`HfApi`): The client, with its token.
        repo_id (`str`): The repository.
        revision (`str`, *optional*): The branch.
        files (`list[str]`): Its paths; none of a branch that is not there yet.
        is_new_branch (`bool`): Whether the branch is not there yet.
    """

    api: HfApi
    repo_id: str
    revision: str | None
    files: list[str]
    is_new_branch: bool

    @classmethod
    def read(cls, api: HfApi, repo_id: str, revision: str | None, *, may_be_new: bool) -> "Repository":
        """Look at a repository that is there.

        Args:
            api (`HfApi`): How the Hub is asked.
            repo_id (`str`): Its name.
            revision (`str` or `None`): A branch; the main one, if None.
            may_be_new (`bool`): Whether the branch need not be there.
        """
        is_new = revision is not None and may_be_new and not _exists(api, repo_id, revision)
        files = [] if is_new else api.list_repo_files(repo_id, revision=revision)
        return cls(api, repo_id, revision, files, is_new)

    def fetch(self, path: str) -> Path | None:
        """A copy of the file at `path`, in the Hub's cache; None if it is not there."""
        if path not in self.files:
            return None
        return Path(self.api.hf_hub_download(self.repo_id, path, revision=self.revision))

    def card(self) -> str | None:
        """The text of the card; None if there is none.

        Raises:
            `ValueError`: If it is no text in UTF-8, or too much for a card.
        """
        path = self.fetch(CARD)
        if path is None:
            return None
        try:
            return read_text(path)
        except ValueError as error:
            raise ValueError(
                f"The card on the Hub cannot be read, so it is not known whose it is. {error} Mend {CARD} in "
                f"{self.repo_id}, or replace it: dspark push --overwrite-card."
            ) from None

    def target_name(self, subfolder: str) -> str | None:
        """What the config of the drafter in a `subfolder` calls its target; None if it cannot be read."""
        path = self.fetch(f"{subfolder}/{CONFIG}".lstrip("/"))
        try:
            return None if path is None else read_json(path).get("target_name_or_path")
        except ValueError:
            return None  # a push replaces it

    def has_same_weights(self, additions: Mapping[str, CommitOperationAdd]) -> bool:
        """Whether every file of weights among `additions`, by their paths, is there already."""
        weights = [path for path in additions if path.endswith(".safetensors")]
        found = self.api.get_paths_info(self.repo_id, weights, revision=self.revision)
        digests = {entry.path: entry.lfs.sha256 for entry in found if getattr(entry, "lfs", None)}
        return all(digests.get(path) == additions[path].upload_info.sha256.hex() for path in weights)

    def stale_weights(self, paths: Collection[str]) -> list[str]:
        """Weights that stand beside new ones, at `paths`, without being replaced."""
        folders = _weight_folders(paths)
        others = [PurePosixPath(path) for path in self.files if path not in paths]
        return [str(p) for p in others if p.parent in folders and _matches(p.name, _WEIGHT_PATTERNS)]

    def other_records(self, paths: Collection[str]) -> list[str]:
        """Records of the weights that are there, where the new files, at `paths`, bring none of that name."""
        patterns = [str(folder / record) for folder in _weight_folders(paths) for record in RECORDS]
        return [path for path in self.files if path not in paths and _matches(path, patterns)]


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def _weight_folders(paths: Iterable[str]) -> set[PurePosixPath]:
    return {PurePosixPath(path).parent for path in paths if path.endswith(".safetensors")}


def _exists(api: HfApi, repo_id: str, revision: str) -> bool:
    try:
        api.repo_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        return False
    return True
