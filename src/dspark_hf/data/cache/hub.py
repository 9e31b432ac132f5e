"""A target cache's way to the Hub and back."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from dspark_hf.publishing.cards.card import is_generated, marked, read_card
from dspark_hf.publishing.contents import CARD
from dspark_hf.publishing.hub_errors import explained_load, explained_push
from dspark_hf.publishing.secrets import check_no_secrets
from dspark_hf.publishing.unchanged import Unchanged, addition

from .manifest import MANIFEST_FILE
from .rows import CHANNELS_FILE

_FILES = [MANIFEST_FILE, CHANNELS_FILE, "rows-*.json", "rows-*.safetensors"]


def upload(
    folder: Path,
    files: Iterable[str],
    card: str,
    repo_id: str,
    *,
    private: bool | None,
    revision: str | None,
    token: str | None,
    commit_message: str,
) -> Any:
    """Upload a cache in one commit, in place of one that is there; what has arrived before is not sent again.

    Args:
        folder (`Path`): The cache.
        files (`Iterable[str]`): Names of its files, which were read and checked: others that are called so may be
            anybody's, or links to elsewhere.
        card (`str`): The text of `README.md`; one that was written or changed by hand stays.
        repo_id (`str`): The data set's repository.
        private, revision, token, commit_message: As for [`TargetCache.push_to_hub`].

    Returns:
        `huggingface_hub.CommitInfo`.

    Raises:
        `ValueError`: If a file holds a secret or changes on the way, or the Hub refuses or does not answer.
    """
    sources = {name: folder / name for name in files}
    api = HfApi(token=token)
    with explained_push(repo_id), Unchanged() as sent:
        sent.watch(sources)
        check_no_secrets(sources, token)
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        place = {"repo_id": repo_id, "repo_type": "dataset", "revision": revision}
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
        additions = [addition(name, file) for name, file in sources.items()]
        # Shards of a former cache that this one does not have leave the repository in the same commit.
        others = [path for path in api.list_repo_files(**place) if path not in sources]
        if CARD not in others or is_generated(read_card(Path(api.hf_hub_download(filename=CARD, **place)))):
            additions.append(CommitOperationAdd(CARD, marked(card).encode()))
        stale = [path for path in others if any(fnmatchcase(path, pattern) for pattern in _FILES)]
        api.preupload_lfs_files(additions=additions, **place)
        sent.check()
        return api.create_commit(
            operations=[
                *additions,
                *(CommitOperationDelete(path) for path in stale),
            ],
            commit_message=commit_message,
            **place,
        )


def download(repo_id: str, *, revision: str | None, token: str | None, cache_dir: str | None) -> str:
    """Fetch a cache's files, and no others.

    Args:
        repo_id, revision, token, cache_dir: As for [`TargetCache.from_hub`].

    Returns:
        `str`: The folder that they are in.

    Raises:
        `ValueError`: If the Hub refuses or does not answer.
    """
    with explained_load(f"the target cache {repo_id}"):
        return snapshot_download(
            repo_id, repo_type="dataset", revision=revision, token=token, cache_dir=cache_dir, allow_patterns=_FILES
        )
