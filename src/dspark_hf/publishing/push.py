"""A folder becomes a commit: whole or not at all."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationDelete, HfApi

from dspark_hf.files import write_json, write_text

from .base_model import check_base_model
from .cards.card import card_text, draw_pictures, is_generated, read_card
from .cards.facts import CardFacts, named_target
from .contents import ADAPTER_CONFIG, CARD, CONFIG, EVALUATIONS, SUBFOLDER, TRAINING, checkpoint_files, files_to_push
from .folder import DrafterFolder
from .hub_errors import explained_push
from .remote import Repository
from .secrets import check_no_secrets
from .unchanged import Unchanged, addition
from .weight_index import INDEX, WEIGHTS


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    facts: CardFacts | None = None,
    evaluations: Mapping[str, dict[str, Any]] | None = None,
    tokenizer: bool = False,
    checkpoint: str | None = None,
    commit_message: str = "Upload drafter",
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    replace_card: bool = False,
) -> CommitInfo:
    """Upload a drafter's folder, or a composite one, in one commit, with a card.

    Of the folder only what [`~publishing.contents.files_to_push`] lists is sent, and nothing is written to it.
    Pictures are drawn from the evaluations that go. The commit is what makes files visible: an upload that is killed
    changes nothing, and a second one sends only what is missing. Weights in the same folders of the repository that
    the new ones do not replace are deleted, since they would be loaded with them, and so are calibration, evaluations
    and pictures of other weights. A new branch starts at the repository's first commit, not with the files of `main`.

    A `README.md` that was written by hand, in the folder or on the Hub, stays. A generated one is made again, and
    keeps base model, licence, data sets and tags where `facts` say nothing else, and the figures of the same weights.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        repo_id (`str`): The repository, made where there is none.
        facts ([`CardFacts`], *optional*): What the card needs to know besides.
        evaluations (`Mapping[str, dict]`, *optional*): Evaluations by name that the folder does not hold
            ([`~publishing.evaluations.read_evaluation`]).
        tokenizer (`bool`, *optional*, defaults to `False`): Whether tokenizer files in a drafter's folder go too.
        checkpoint (`str`, *optional*): Folder of the repository that gets the drafter once more, with what training
            needs to go on from it, where the folder is a trainer's checkpoint.
        commit_message, commit_description (`str`, *optional*): Words for the commit.
        private (`bool`, *optional*): Whether a new repository is private.
        token (`str` or `bool`, *optional*): Token with the right to write; by default the one saved on this machine.
        revision (`str`, *optional*): The branch, made where there is none.
        create_pr (`bool`, *optional*, defaults to `False`): Whether to open a pull request instead.
        replace_card (`bool`, *optional*, defaults to `False`): Whether the card is made anew from what is known here,
            in place of one that was written by hand too.

    Returns:
        `CommitInfo`: With `commit_url` and `oid`.

    Raises:
        `ValueError`: If the folder holds no drafter, or a secret in one of its files, the base model does not fit it,
            or the Hub refuses or does not answer, with what to do about it.
    """
    api = HfApi(library_name="dspark_hf", token=token)
    facts = replace(facts or _facts_of(folder), repo_id=repo_id)
    with explained_push(repo_id), tempfile.TemporaryDirectory() as made, Unchanged() as sent:
        # Whatever is wrong here is told before a repository is made.
        drafter, files = prepare(folder, facts, made, evaluations=evaluations, tokenizer=tokenizer)
        if checkpoint is not None:
            more = checkpoint_files(folder)
            files |= {f"{checkpoint}/{path}": files.get(path, Path(folder) / path) for path in more}
        sent.watch(files)
        check_no_secrets(files, token)
        if facts.base_model is not None:
            check_base_model(drafter.config, facts.base_model, token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        facts = replace(facts, repo_id=repo_id)
        hub = Repository.read(api, repo_id, revision, may_be_new=not create_pr)
        additions = {path: addition(path, file) for path, file in files.items() if path != CARD}
        stale, others = hub.stale_weights(additions), hub.other_records(additions)
        if others and hub.has_same_weights(additions):
            known = {path: hub.fetch(path) for path in others if path.endswith(".json")}
            try:
                drafter = drafter.with_records(_inside(facts.subfolder, known))
            except ValueError as error:
                raise ValueError(
                    f"A record of these weights in {repo_id} on the Hub is damaged: {error} Mend or delete it there."
                ) from error
        else:
            stale += others
        for path, file in _with_card(drafter, facts, files, Path(made), hub, replace_card).items():
            if file != files.get(path) or path == CARD:
                additions[path] = addition(path, file)
            if path == CARD:
                check_no_secrets({path: file}, token)  # it says what tags and licence were given
        # The large files go first, so that little happens between a new branch and its content. Files that are the
        # same on the revision named here are left out of the commit: it must be the one that the commit builds on.
        base = api.list_repo_commits(repo_id)[-1].commit_id if hub.is_new_branch else revision
        api.preupload_lfs_files(repo_id, list(additions.values()), revision=base, create_pr=create_pr)
        if hub.is_new_branch:
            api.create_branch(repo_id, branch=revision, revision=base, exist_ok=True)
        sent.check()
        return api.create_commit(
            repo_id,
            [*additions.values(), *(CommitOperationDelete(path) for path in stale if path not in additions)],
            commit_message=commit_message,
            commit_description=commit_description,
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
        return push_folder(folder, repo_id, **{"facts": CardFacts(repo_id, tags=tuple(tags or ())), **options})


def preview(
    folder: str | os.PathLike,
    facts: CardFacts,
    *,
    evaluations: Mapping[str, dict[str, Any]] | None = None,
    tokenizer: bool = False,
    replace_card: bool = False,
) -> tuple[list[str], str]:
    """What [`push_folder`] would send, found without a network, and without writing anything.

    Args:
        folder, facts, evaluations, tokenizer, replace_card: As there.

    Returns:
        `tuple[list[str], str]`: Paths in the repository, and the text of the card where the repository is a new one.
    """
    with tempfile.TemporaryDirectory() as made:
        drafter, files = prepare(folder, facts, made, evaluations=evaluations, tokenizer=tokenizer)
        check_no_secrets(files)
        files = _with_card(drafter, facts, files, Path(made), None, replace_card)
        check_no_secrets({CARD: files[CARD]})
        return sorted(files), read_card(files[CARD])


def prepare(
    folder: str | os.PathLike,
    facts: CardFacts,
    made: str | os.PathLike,
    *,
    evaluations: Mapping[str, dict[str, Any]] | None = None,
    tokenizer: bool = False,
) -> tuple[DrafterFolder, dict[str, Path]]:
    """The drafter of a folder, and its files by their paths in the repository.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        facts ([`CardFacts`]): What its files do not tell.
        made (`str` or `os.PathLike`): A folder for what is not in that one.
        evaluations (`Mapping`, *optional*): Records of evaluations to add, by name.
        tokenizer (`bool`, *optional*, defaults to `False`): Whether the tokenizer's files go along.

    Raises:
        `ValueError`: If the folder holds no drafter, or a file of it is damaged or a link, or a card that is no text.
    """
    folder = Path(folder)
    files = {path: folder / path for path in files_to_push(folder, tokenizer=tokenizer)}
    if CARD in files:
        read_card(files[CARD])
    drafter = DrafterFolder.read(folder / facts.subfolder)
    for name, record in (evaluations or {}).items():
        path = f"{facts.subfolder}/{EVALUATIONS}/{name}.json".lstrip("/")
        files[path] = Path(made) / path
        write_json(files[path], record)
    drafter = drafter.with_records(_inside(facts.subfolder, files))
    # As they lie in the folder they may name tokens and places of this machine.
    public = {f"{EVALUATIONS}/{name}.json": record for name, record in drafter.evaluations.items()}
    if drafter.training:
        public[TRAINING] = drafter.training
    if drafter.adapter is not None:
        public[ADAPTER_CONFIG] = drafter.adapter
    for name, record in public.items():
        path = f"{facts.subfolder}/{name}".lstrip("/")
        if path in files:
            files[path] = Path(made) / path
            write_json(files[path], record)
    return drafter, files


def _with_card(
    drafter: DrafterFolder,
    facts: CardFacts,
    files: Mapping[str, Path],
    made: Path,
    hub: Repository | None,
    replace_card: bool,
) -> dict[str, Path]:
    """The files with pictures of the evaluations, and with a card unless somebody's own words are in its place."""
    pictures = draw_pictures(drafter, facts, made)
    files = {**files, **{path: made / path for path in pictures}}
    names_target = named_target(drafter.config) is not None
    if not replace_card and CARD in files:
        text = read_card(files[CARD])
        if not is_generated(text):
            return files
        facts = facts.completed(text, keeps_base_model=not names_target)
    if not replace_card and hub is not None and (text := hub.card()) is not None:
        if not is_generated(text):
            return {path: file for path, file in files.items() if path != CARD}
        is_same = hub.target_name(facts.subfolder) == drafter.config.get("target_name_or_path")
        facts = facts.completed(text, keeps_base_model=is_same or not names_target)
    write_text(made / CARD, card_text(drafter, facts, [PurePosixPath(path).name for path in pictures]))
    return {**files, CARD: made / CARD}


def _facts_of(folder: str | os.PathLike) -> CardFacts:
    if not (Path(folder) / SUBFOLDER / CONFIG).is_file():
        return CardFacts()
    return CardFacts(subfolder=SUBFOLDER, has_target=any((Path(folder) / name).is_file() for name in (WEIGHTS, INDEX)))


def _inside(subfolder: str, files: Mapping[str, Path]) -> dict[str, Path]:
    """Files of a repository by their places in the drafter's folder."""
    root = PurePosixPath(subfolder)
    paths = {PurePosixPath(path): file for path, file in files.items()}
    return {str(path.relative_to(root)): file for path, file in paths.items() if path.is_relative_to(root)}
