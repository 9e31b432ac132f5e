"""A folder becomes a commit: whole or not at all."""

import fnmatch
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

from .card import is_generated, write_card
from .facts import CardFacts
from .folder import CALIBRATION, CARD, EVALUATIONS, TRAINING
from .plots import ACCEPTANCE, RELIABILITY

# What a trainer leaves beside the model it saves, and what editors and version control leave anywhere. A recipe names
# folders of the machine; what it says about the drafter is in `training.json`.
LEFT_OUT = (
    ".*", "_*", "checkpoint-*", "runs", "*.bin", "*.pt", "*.pth", "*.tmp", "trainer_state.json", "*_results.json",
    "recipe.yaml",
)  # fmt: skip
_WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
# What is true of one set of weights only.
_RECORDS = (CALIBRATION, TRAINING, f"{EVALUATIONS}/*.json", ACCEPTANCE, RELIABILITY)


def files_to_push(folder: str | os.PathLike) -> list[str]:
    """Paths below a folder, with `/`, that are part of the model."""
    folder = Path(folder)
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path.as_posix() for path in paths if not any(_is_left_out(part) for part in path.parts)]


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    commit_message: str = "Upload drafter",
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    replace_card: bool = False,
) -> CommitInfo:
    """Upload a folder in one commit.

    The commit is what makes files visible: an upload that is killed changes nothing, and a second one sends only what
    is missing. Weights in the same folders of the repository that the new ones do not replace are deleted, since they
    would be loaded with them, and so are calibration, evaluations and pictures of other weights. A `README.md` that
    was written by hand on the Hub is not replaced by a generated one, nor is a generated one by one that knows less of
    the same weights. A new branch starts at the repository's first commit, not with the files of `main`.

    Args:
        folder (`str` or `os.PathLike`): The folder; a trainer's checkpoints and logs in it stay behind.
        repo_id (`str`): The repository, made where there is none.
        commit_message, commit_description (`str`, *optional*): Words for the commit.
        private (`bool`, *optional*): Whether a new repository is private.
        token (`str` or `bool`, *optional*): Token with the right to write; by default the one saved on this machine.
        revision (`str`, *optional*): The branch, made where there is none.
        create_pr (`bool`, *optional*, defaults to `False`): Whether to open a pull request instead.
        replace_card (`bool`, *optional*, defaults to `False`): Whether a `README.md` that was written by hand on the
            Hub gives way to a generated one.

    Returns:
        `CommitInfo`: With `commit_url` and `oid`.

    Raises:
        `ValueError`: If the Hub refuses, with what to do about it.
    """
    api = HfApi(library_name="dspark_hf")
    with _explained(repo_id):
        repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        is_new_branch = revision is not None and not create_pr and not _exists(api, repo_id, revision, token)
        remote = [] if is_new_branch else api.list_repo_files(repo_id, revision=revision, token=token)
        additions = {path: CommitOperationAdd(path, Path(folder) / path) for path in files_to_push(folder)}
        records = _records_left(additions, remote)
        is_unchanged = bool(records) and _has_same_weights(api, repo_id, revision, token, additions)
        if CARD in additions and CARD in remote and not replace_card:
            if _is_generated_file(Path(folder) / CARD) and (
                is_unchanged or _is_written_by_hand(api, repo_id, revision, token)
            ):
                del additions[CARD]
        stale = _stale_weights(additions, remote) + ([] if is_unchanged else records)
        # The large files go first, so that little happens between a new branch and its content. Files that are the
        # same on the revision named here are left out of the commit: it must be the one that the commit builds on.
        base = api.list_repo_commits(repo_id, token=token)[-1].commit_id if is_new_branch else revision
        api.preupload_lfs_files(repo_id, list(additions.values()), token=token, revision=base, create_pr=create_pr)
        if is_new_branch:
            api.create_branch(repo_id, branch=revision, revision=base, token=token, exist_ok=True)
        return api.create_commit(
            repo_id,
            [*additions.values(), *(CommitOperationDelete(path) for path in stale)],
            commit_message=commit_message,
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )


def push_model(
    model: Any,
    repo_id: str,
    *,
    max_shard_size: int | str = "50GB",
    tags: Sequence[str] | None = None,
    **options: Any,
) -> CommitInfo:
    """Save a drafter that is in memory and upload it with a card.

    Args:
        model ([`DSparkModel`] or another drafter): The drafter.
        repo_id (`str`): The repository.
        max_shard_size (`int` or `str`, *optional*, defaults to `"50GB"`): As for `save_pretrained`.
        tags (`Sequence[str]`, *optional*): Tags besides the usual ones.
        options: As for [`push_folder`].

    Returns:
        `CommitInfo`: With `commit_url` and `oid`.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        write_card(folder, CardFacts(repo_id, tags=tuple(tags or ())))
        return push_folder(folder, repo_id, **options)


def _is_left_out(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in LEFT_OUT)


def _matches(path: PurePosixPath, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(path.as_posix(), pattern) for pattern in patterns)


def _weight_folders(paths: Iterable[str]) -> set[PurePosixPath]:
    return {PurePosixPath(path).parent for path in paths if path.endswith(".safetensors")}


def _stale_weights(paths: Collection[str], remote: Sequence[str]) -> list[str]:
    """Remote weights that stand beside new ones without being replaced."""
    folders = _weight_folders(paths)
    others = [PurePosixPath(path) for path in remote if path not in paths]
    return [str(p) for p in others if p.parent in folders and _matches(PurePosixPath(p.name), _WEIGHT_PATTERNS)]


def _records_left(paths: Collection[str], remote: Sequence[str]) -> list[str]:
    """Remote records of weights that are to be replaced, where the new ones bring none of that name."""
    patterns = [str(folder / record) for folder in _weight_folders(paths) for record in _RECORDS]
    return [path for path in remote if path not in paths and _matches(PurePosixPath(path), patterns)]


def _has_same_weights(
    api: HfApi, repo_id: str, revision: str | None, token: str | bool | None, additions: dict[str, CommitOperationAdd]
) -> bool:
    weights = [path for path in additions if path.endswith(".safetensors")]
    found = api.get_paths_info(repo_id, weights, revision=revision, token=token)
    digests = {entry.path: entry.lfs.sha256 for entry in found if getattr(entry, "lfs", None)}
    return all(digests.get(path) == additions[path].upload_info.sha256.hex() for path in weights)


def _exists(api: HfApi, repo_id: str, revision: str, token: str | bool | None) -> bool:
    try:
        api.repo_info(repo_id, revision=revision, token=token)
    except RevisionNotFoundError:
        return False
    return True


def _is_written_by_hand(api: HfApi, repo_id: str, revision: str | None, token: str | bool | None) -> bool:
    try:
        path = api.hf_hub_download(repo_id, CARD, revision=revision, token=token)
    except EntryNotFoundError:
        return False
    return not _is_generated_file(Path(path))


def _is_generated_file(path: Path) -> bool:
    return is_generated(path.read_text(encoding="utf-8"))


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        advice = {
            401: "No valid token was sent: run `hf auth login`, or pass token=",
            403: "The token may not write there: use one with write access to that namespace, or another repo_id",
            404: "The repository is not there for this token: check repo_id, and the token's access if it is private",
        }
        what_to_do = advice.get(status, "Push again: what was sent is kept")
        detail = " ".join(str(error).split())
        raise ValueError(f"The Hub refused to store {repo_id}. {what_to_do}. ({detail})") from error
