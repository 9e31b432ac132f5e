"""`dspark push`: a drafter's folder becomes a repository with a card."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer


def push(
    folder: Annotated[Path, typer.Argument(help="The drafter's folder, as save_pretrained or training wrote it.")],
    repo: Annotated[str, typer.Argument(help="The repository, made where there is none: OWNER/NAME.")],
    target: Annotated[
        str | None, typer.Option(help="Push a composite repository: this target (repository or folder) + dspark/.")
    ] = None,
    include_target: Annotated[
        bool, typer.Option("--include-target", help="Copy the target's weights too; by default it is only named.")
    ] = False,
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="File of `dspark bench generate --json`; may be repeated.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The target's repository, if the drafter's config does not name it.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="The licence's identifier, e.g. apache-2.0.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Hub dataset of the training text; may be repeated.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag besides the usual ones; may be repeated.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, made where there is none; main by default.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str, typer.Option(help="The commit's message.")] = "Upload drafter",
    overwrite_card: Annotated[
        bool, typer.Option("--overwrite-card", help="Replace a README.md that was written by hand.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the card and list the files; upload nothing.")
    ] = False,
) -> None:
    """Publish a drafter with a model card, in one commit.

    The token is that of `hf auth login`, or $HF_TOKEN. Evaluations are kept in the folder, so the next push has them.

    Examples:

        dspark push runs/first org/Model-drafter --evaluation chat.json --license apache-2.0

        dspark push runs/first org/Model-DSpark --target org/Model

        dspark push runs/first org/Model-DSpark --target org/Model --include-target --revision v2

        dspark push runs/first org/Model-drafter --dry-run
    """
    if include_target and target is None:
        raise ValueError("--include-target copies the target's weights: say which target with --target.")
    from dspark_hf.hub.embedded import resolve_drafter, resolve_target
    from dspark_hf.publishing import CardFacts, add_evaluation
    from dspark_hf.publishing.facts import known_repo
    from dspark_hf.publishing.folder import DrafterFolder

    drafter = Path(resolve_drafter(str(folder)))
    DrafterFolder.read(drafter)
    for file in evaluation or ():
        add_evaluation(drafter, file)
    facts = {"license": license, "datasets": tuple(dataset or ()), "tags": tuple(tag or ())}
    options = {
        "private": private or None,
        "revision": revision,
        "commit_message": message,
        "replace_card": overwrite_card,
    }
    if target is None:
        _publish(drafter, drafter, CardFacts(repo, base_model, **facts), options, dry_run)
        return
    base_model = base_model or known_repo(target)
    if base_model is None and not include_target and not dry_run:
        raise ValueError(
            f"--target {target} is no Hub repository that others could load. Add --include-target, or name its "
            "repository with --base-model."
        )
    from dspark_hf.hub.assemble import assemble
    from dspark_hf.hub.composite import SUBFOLDER

    with tempfile.TemporaryDirectory() as root:
        assemble(root, resolve_target(target), drafter, name=base_model, include_target=include_target)
        composite = CardFacts(repo, base_model, **facts, subfolder=SUBFOLDER, has_target=include_target)
        _publish(Path(root), Path(root) / SUBFOLDER, composite, options, dry_run)


def _publish(root: Path, drafter: Path, facts: Any, options: dict[str, Any], dry_run: bool) -> None:
    from dspark_hf.publishing import push_folder, write_card
    from dspark_hf.publishing.push import files_to_push

    if not write_card(drafter, facts, overwrite=options["replace_card"], root=root):
        typer.echo(f"{root / 'README.md'} was not written by this command: kept (--overwrite-card replaces it)")
    if dry_run:
        typer.echo("\n".join(files_to_push(root)))
        return
    typer.echo(push_folder(root, facts.repo_id, **options).commit_url)
