"""What an upload will do, shown before it is done, and asked about."""

import sys
from collections.abc import Sequence

import typer
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from dspark_hf.cli.terminal import visible, visible_name
from dspark_hf.publishing.hub_errors import explained_push


def check_can_ask(yes: bool, what: str) -> None:
    """Check, before any work, that somebody can be asked about an upload, or has said `yes`.

    Args:
        yes (`bool`): The answer already.
        what (`str`): What uploads, for the message.

    Raises:
        `ValueError`: If neither.
    """
    if not yes and not sys.stdin.isatty():
        raise ValueError(f"{what} uploads, and this is no terminal to ask at: add --yes to say that it may.")


def confirm_upload(repo_id: str, folder: str, *, private: bool | None, yes: bool, revision: str | None = None) -> None:
    """Show repository, visibility and folder, and ask.

    Args:
        repo_id (`str`): The repository.
        folder (`str`): What is uploaded.
        private (`bool` or `None`): Whether the repository is to be private, if it is made; as the account has it, if
            None.
        yes (`bool`): The answer already.
        revision (`str`, *optional*): The branch.

    Raises:
        `ValueError`: If the answer is no, nobody is logged in, or the Hub does not answer.
    """
    with explained_push(repo_id):
        repo_id, visibility = _visibility(repo_id, private)
    branch = f", branch {revision}" if revision else ""
    typer.echo(visible(f"Uploads {folder} to {repo_id} ({visibility}{branch})."), err=True)
    if not yes and not typer.confirm("Go on?", err=True):
        raise ValueError("Nothing was uploaded.")


def show_files(files: Sequence[str], left_behind: Sequence[str], *, err: bool) -> None:
    """List the `files` that go, and say what is `left_behind`; with `err` on stderr."""
    typer.echo("\n".join(map(visible_name, files)), err=err)
    if left_behind:
        typer.echo(f"stays here: {', '.join(map(visible_name, left_behind))}", err=True)


def _visibility(repo_id: str, private: bool | None) -> tuple[str, str]:
    api = HfApi(library_name="dspark_hf")
    if "/" not in repo_id:
        repo_id = f"{api.whoami()['name']}/{repo_id}"
    try:
        is_private = api.repo_info(repo_id).private
    except RepositoryNotFoundError:
        api.whoami()  # a repository can be made by who is logged in only
        new = (
            "private" if private else "public, unless its owner's default is private" if private is None else "public"
        )
        return repo_id, f"a new repository, {new}"
    return repo_id, "private" if is_private else "public"
