"""`dspark convert`: a drafter in another packaging becomes one in the flat layout."""

from pathlib import Path
from typing import Annotated

import typer

from dspark_hf.cli.terminal import visible


def convert(
    source: Annotated[str, typer.Argument(help="The drafter: a repository or a folder, in any packaging.")],
    folder: Annotated[Path, typer.Argument(help="Where it is written; a new or an empty folder.")],
    subfolder: Annotated[str | None, typer.Option(help="Subfolder of the source.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the source.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Its target, where the source does not tell how many layers that has (speculators)."),
    ] = None,
    form: Annotated[
        str,
        typer.Option("--format", help="flat, or v4: a DeepSeek-V4-shaped drafter beside its --target, a folder."),
    ] = "flat",
) -> None:
    """Read a drafter in any packaging, and write it in the flat layout, or as DeepSeek-V4's releases have theirs.

    Copies of the target's embedding and output head are left out.

    Examples:

        dspark convert org/Model-speculator.dspark runs/converted --target org/Model
        dspark convert org/Model-DFlash-b16 runs/dflash
        dspark convert runs/drafter runs/both --format v4 --target models/DeepSeek-V4-Flash
    """
    if form not in ("flat", "v4"):
        raise ValueError(f"--format must be flat or v4, got {form!r}.")
    if form == "v4" and (target is None or not Path(target).is_dir()):
        raise ValueError(
            f"--format v4 writes beside the target's files: name its folder with --target, got {target!r}."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; give a new folder.")
    from transformers import AutoConfig

    from dspark_hf.hub.deepseek_v4.writing import engines_of, write_stages
    from dspark_hf.hub.embedded import resolve_drafter, resolve_target
    from dspark_hf.hub.load import AutoDrafter
    from dspark_hf.publishing.hub_errors import explained_load

    places = {name: value for name, value in (("subfolder", subfolder), ("revision", revision)) if value is not None}
    drafter = AutoDrafter.from_pretrained(resolve_drafter(source), **places)
    if target is not None:
        with explained_load(target):
            num_layers = AutoConfig.from_pretrained(resolve_target(target)).get_text_config().num_hidden_layers
        drafter.config.check_taps(num_layers)
        drafter.config.num_target_layers = num_layers
    if drafter.config.num_target_layers is None:
        raise ValueError(f"{source} does not tell how many layers its target has; name the target with --target.")
    if form == "v4":
        write_stages(drafter, target, folder)
    else:
        drafter.save_pretrained(folder)
    typer.echo(visible(f"{type(drafter).__name__} of {drafter.config.num_slots} slots -> {folder}"))
    if form == "v4":
        typer.echo(visible(engines_of(folder)))
