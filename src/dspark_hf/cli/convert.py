"""`dspark convert`: a drafter from one packaging into another, and which engines load it."""

import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from dspark_hf.cli.terminal import visible


def convert(
    source: Annotated[str, typer.Argument(help="The drafter: a repository or a folder, in any packaging.")],
    folder: Annotated[
        Path | None, typer.Argument(help="Where it is written; a new or an empty folder. Not needed with --check.")
    ] = None,
    subfolder: Annotated[str | None, typer.Option(help="Subfolder of the source.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the source.")] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Its target, where the source does not tell how many layers that has (speculators), or its output "
            "head is written (a reduced draft vocabulary in speculators' packaging)."
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="flat, speculators, specforge, or v4: a DeepSeek-V4-shaped drafter beside its --target, a folder.",
        ),
    ] = "flat",
    check: Annotated[
        list[str] | None,
        typer.Option(
            help="vllm, sglang, llama.cpp or speculators: say whether it loads what was written, or else the "
            "source; give it again for more. Where one does not, the exit code is 1."
        ),
    ] = None,
) -> None:
    """Read a drafter in any packaging, and write it in another: the flat layout, that of speculators, with which vLLM
    serves a reduced draft vocabulary, or that of DeepSeek-V4's releases.

    Copies of the target's embedding and output head are left out.

    Examples:

        dspark convert org/Model-speculator.dspark runs/converted --target org/Model
        dspark convert org/Model-DFlash-b16 runs/dflash
        dspark convert runs/drafter runs/served --format speculators --target org/Model --check vllm
        dspark convert runs/drafter runs/both --format v4 --target models/DeepSeek-V4-Flash
        dspark convert runs/drafter --check vllm --check sglang
    """
    from dspark_hf.publishing.engines import get_engine

    engines = [get_engine(name) for name in check or ()]
    if form not in ("flat", "speculators", "specforge", "v4"):
        raise ValueError(f"--format must be flat, speculators, specforge or v4, got {form!r}.")
    if form == "v4" and engines:
        raise ValueError(
            "--check knows nothing of --format v4, which says by itself which engines take what it wrote."
        )
    places = {name: value for name, value in (("subfolder", subfolder), ("revision", revision)) if value is not None}
    if folder is None:
        if not engines:
            raise ValueError("Name the folder to write, or an engine with --check.")
        _say(engines, drafter_folder(source, **places))
        return
    if form == "v4" and (target is None or not Path(target).is_dir()):
        raise ValueError(
            f"--format v4 writes beside the target's files: name its folder with --target, got {target!r}."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; give a new folder.")
    _check_writable(folder)
    from transformers import AutoConfig

    from dspark_hf.hub.deepseek_v4.writing import engines_of, write_stages
    from dspark_hf.hub.embedded import resolve_drafter, resolve_target
    from dspark_hf.hub.load import AutoDrafter
    from dspark_hf.hub.packagings import write_packaging
    from dspark_hf.modeling.borrowing import check_target_sizes
    from dspark_hf.publishing.hub_errors import explained_load

    drafter = AutoDrafter.from_pretrained(resolve_drafter(source), **places)
    if target is not None:
        with explained_load(target):
            text_config = AutoConfig.from_pretrained(resolve_target(target)).get_text_config()
        check_target_sizes(drafter.config, text_config, target)
        drafter.config.num_target_layers = text_config.num_hidden_layers
    if drafter.config.num_target_layers is None:
        raise ValueError(f"{source} does not tell how many layers its target has; name the target with --target.")
    if form == "v4":
        write_stages(drafter, target, folder)
    else:
        if form == "speculators":
            _prepare(drafter, target)
        write_packaging(drafter, folder, form)
    typer.echo(visible(f"{type(drafter).__name__} of {drafter.config.num_slots} slots -> {folder}"))
    if form == "v4":
        typer.echo(visible(engines_of(folder)))
    _say(engines, folder)


def _check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before anything is loaded."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "is no folder" if not place.is_dir() else "may not be written"
        raise ValueError(f"{folder} cannot be made: {place} {why}. Give a folder elsewhere.")


def _prepare(drafter: Any, target: str | None) -> None:
    """Bind a drafter whose rows of the target's output head are to be written, and let it name its target."""
    from dspark_hf.hub.embedded import resolve_target
    from dspark_hf.modeling.fingerprint import public_name
    from dspark_hf.publishing.hub_errors import explained_load

    if drafter.has_reduced_vocabulary and not drafter.config.own_lm_head:
        if target is None:
            raise ValueError(
                "The rows of the target's output head belong to a reduced draft vocabulary in speculators' packaging; "
                "name the target with --target."
            )
        from transformers import AutoModelForCausalLM

        with explained_load(target):
            drafter.bind(AutoModelForCausalLM.from_pretrained(resolve_target(target), dtype="auto"))
    if drafter.config.target_name_or_path is None and target is not None:
        drafter.config.target_name_or_path = public_name(target)


def drafter_folder(source: str, subfolder: str | None = None, revision: str | None = None) -> Path:
    """The folder of a drafter, fetched if it is a repository's.

    Args:
        source (`str`): A repository, a folder, or `embedded`; of one that holds a target too, its drafter is meant.
        subfolder (`str`, *optional*): Where it lies in that.
        revision (`str`, *optional*): Of the repository.

    Returns:
        `Path`.
    """
    from dspark_hf.files import read_json
    from dspark_hf.hub.embedded import resolve_drafter
    from dspark_hf.modeling.configuration.recognition import is_of_drafter
    from dspark_hf.publishing.contents import CONFIG, SUBFOLDER

    place = resolve_drafter(source)

    def fetched(*names: str) -> Path:
        if Path(place).is_dir():
            return Path(place)
        from huggingface_hub import snapshot_download

        from dspark_hf.publishing.hub_errors import explained_load

        with explained_load(f"the drafter {source}"):
            return Path(snapshot_download(place, revision=revision, allow_patterns=list(names)))

    if subfolder is None:
        root = fetched(CONFIG, f"{SUBFOLDER}/{CONFIG}")
        is_drafter = (root / CONFIG).is_file() and is_of_drafter(read_json(root / CONFIG))
        subfolder = "" if is_drafter or not (root / SUBFOLDER / CONFIG).is_file() else SUBFOLDER
    names = (CONFIG, "*.safetensors", "*.safetensors.index.json")
    return fetched(*(str(PurePosixPath(subfolder, name)) for name in names)) / subfolder


def _say(engines: list[Any], folder: Path) -> None:
    if not engines:
        return
    from dspark_hf.hub.described import faults
    from dspark_hf.hub.packagings import find_packaging
    from dspark_hf.hub.packagings.renaming import without_wrappers
    from dspark_hf.publishing.engines import Checkpoint

    checkpoint, is_refused = Checkpoint.read(folder), False
    # A target, for one, is told as what it is, not by all that it lacks.
    find_packaging(checkpoint.config, without_wrappers(checkpoint.shapes, str(folder)).values(), str(folder))
    for engine in engines:
        # An engine may refuse what cannot be read here either, and says why by itself.
        problems = engine.problems(checkpoint) or faults(folder)
        is_refused |= bool(problems)
        told = f"does not load it: {'; '.join(problems)}." if problems else "loads it, as far as its code says."
        typer.echo(visible(f"{engine.name} ({engine.release}) {told}"))
    if is_refused:
        raise typer.Exit(1)
