"""`dspark push`: a drafter's folder becomes a repository with a card."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dspark_hf.cli.terminal import visible


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
        list[Path] | None,
        typer.Option(help="Folder of `dspark evaluate --out`, or a file of its figures; may be repeated."),
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
        bool,
        typer.Option("--overwrite-card", help="Make the card anew, also in place of one that was written by hand."),
    ] = False,
    tokenizer: Annotated[
        bool, typer.Option("--tokenizer", help="Push tokenizer files of the folder too; a composite always has them.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files and the card; upload and write nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Upload without asking.")] = False,
) -> None:
    """Publish a drafter with a model card, in one commit.

    Only a drafter's files go: weights, configs, card, records, pictures; the rest of the folder stays. Repository,
    visibility and files are shown and asked about first. What the card on the Hub says of base model, licence, data
    sets and tags stays where no option says otherwise. The token is that of `hf auth login`, or $HF_TOKEN.
    Evaluations are kept in the folder, so the next push has them.

    Examples:

        dspark push runs/first org/Model-drafter --evaluation chat.json --license apache-2.0
        dspark push runs/first org/Model-DSpark --target org/Model
        dspark push runs/first org/Model-DSpark --target org/Model --include-target --revision v2 --yes
        dspark push runs/first org/Model-drafter --dry-run
    """
    if include_target and target is None:
        raise ValueError("--include-target copies the target's weights: say which target with --target.")
    from dspark_hf.cli.upload import check_can_ask

    if not dry_run:
        check_can_ask(yes, "dspark push")
    from dspark_hf.hub.embedded import resolve_drafter, resolve_target
    from dspark_hf.publishing import CardFacts
    from dspark_hf.publishing.cards.facts import known_repo
    from dspark_hf.publishing.folder import DrafterFolder

    drafter = Path(resolve_drafter(str(folder)))
    kept = DrafterFolder.read(drafter).evaluations
    evaluations = _evaluations(evaluation or (), folder.resolve().name)
    _check_weights(drafter, kept | evaluations)
    push = _Push(
        drafter,
        evaluations=evaluations,
        content={"tokenizer": tokenizer, "replace_card": overwrite_card},
        options={"private": private or None, "revision": revision, "commit_message": message},
        dry_run=dry_run,
        yes=yes,
    )
    facts = CardFacts(repo, base_model, license, tuple(dataset or ()), tuple(tag or ()))
    if target is None:
        push.run(drafter, facts)
        return
    base_model = base_model or known_repo(target)
    if base_model is None and not include_target and not dry_run:
        raise ValueError(
            f"--target {target} is no Hub repository that others could load. Add --include-target, or name its "
            "repository with --base-model."
        )
    from dspark_hf.hub.assemble import assemble
    from dspark_hf.publishing.contents import SUBFOLDER
    from dspark_hf.publishing.hub_errors import explained_load

    with tempfile.TemporaryDirectory() as root:
        with explained_load(target):
            assemble(root, resolve_target(target), drafter, name=base_model, include_target=include_target)
        facts = replace(facts, base_model=base_model, subfolder=SUBFOLDER, has_target=include_target)
        push.run(Path(root), facts)


def _evaluations(files: Sequence[Path], drafter: str) -> dict[str, dict[str, Any]]:
    """The figures of evaluations of a `drafter`, by the names that they get in the repository."""
    from dspark_hf.publishing.evaluations import evaluation_name, read_evaluation

    found: dict[str, dict[str, Any]] = {}
    for file in files:
        record, name = read_evaluation(file, drafter), evaluation_name(file)
        if name in found:
            raise ValueError(f"Two of the evaluations would be called {name!r} in the repository. Rename one.")
        found[name] = record
    return found


def _check_weights(drafter: Path, evaluations: Mapping[str, dict[str, Any]]) -> None:
    """Check that `evaluations` that tell of which weights they are, are of those in the `drafter`'s folder."""
    told = {name: record for name, record in evaluations.items() if record.get("weights")}
    if not told:
        return
    from dspark_hf import AutoDrafter
    from dspark_hf.data.cache.manifest import weights_digest

    # As they were loaded for the evaluation.
    dtypes = {record.get("dtype") or "auto" for record in told.values()}
    digests = {dtype: weights_digest(AutoDrafter.from_pretrained(drafter, dtype=dtype)) for dtype in dtypes}
    for name, record in told.items():
        if record["weights"] != (here := digests[record.get("dtype") or "auto"]):
            raise ValueError(
                f"The figures of {name!r} are of other weights ({record['weights']}) than {drafter} holds ({here}): "
                f"of another drafter, or from before it was trained on. Evaluate it (dspark evaluate --drafter "
                f"{drafter}), and remove what {drafter / 'evaluations'} keeps of others."
            )


@dataclass(frozen=True)
class _Push:
    """What is the same for a drafter alone and with its target."""

    drafter: Path
    evaluations: dict[str, dict[str, Any]]
    content: dict[str, bool]
    options: dict[str, Any]
    dry_run: bool
    yes: bool

    def run(self, root: Path, facts: Any) -> None:
        from dspark_hf.cli.upload import confirm_upload, show_files
        from dspark_hf.files import read_json, write_json
        from dspark_hf.publishing import push_folder
        from dspark_hf.publishing.base_model import check_base_model
        from dspark_hf.publishing.cards.card import is_generated
        from dspark_hf.publishing.contents import CONFIG, EVALUATIONS, left_behind
        from dspark_hf.publishing.push import preview

        files, card = preview(root, facts, evaluations=self.evaluations, **self.content)
        inside = [path.removeprefix(f"{facts.subfolder}/") for path in files]
        show_files(files, left_behind(self.drafter, inside), err=not self.dry_run)
        if not is_generated(card):
            typer.echo("README.md was not written by this command: kept (--overwrite-card replaces it)", err=True)
            given = {"--license": facts.license, "--dataset": facts.datasets, "--tag": facts.tags}
            if unused := [name for name, value in given.items() if value]:
                typer.echo(f"not used, since they are words of a card: {', '.join(unused)}", err=True)
        if self.dry_run:
            if facts.base_model is not None:
                check_base_model(read_json(self.drafter / CONFIG), facts.base_model)
            typer.echo(visible(f"\n{card}"))
            return
        confirm_upload(facts.repo_id, str(self.drafter), private=self.options["private"], yes=self.yes,
                       revision=self.options["revision"])  # fmt: skip
        commit = push_folder(
            root, facts.repo_id, facts=facts, evaluations=self.evaluations, **self.content, **self.options
        )
        for name, record in self.evaluations.items():
            write_json(self.drafter / EVALUATIONS / f"{name}.json", record)
        typer.echo(commit.commit_url)
