"""`dspark train`: a drafter from a recipe."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from dspark_hf.cli.options import StrictOption, TrustOption
from dspark_hf.cli.terminal import plain


class RecipeCommand(TyperCommand):
    """A command whose help ends with the keys of a recipe."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the keys, by section."""
        from dspark_hf.trainers.recipes.recipe import known_keys

        sections: dict[str, list[str]] = {}
        for key in sorted(known_keys({})):
            section, _, name = key.rpartition(".")
            sections.setdefault(section, []).append(name)
        for section, names in sections.items():
            title = f"Keys of the section {section}" if section else "Keys"
            with formatter.section(title):
                formatter.write_text(", ".join(names))


def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="What differs from the recipe.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Recipe, a YAML file; see examples/recipes.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    strict: StrictOption = False,
    trust_remote_code: TrustOption = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Print disk and memory and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With push_to_hub, upload without asking.")] = False,
) -> None:
    """Train a drafter.

    Keys are those of the recipe, `section.name` inside a section, or the bare name of a training argument or drafter
    field; values are YAML. Unknown keys are errors.

    A recipe is a file, and may be somebody else's: it brings no token, writes inside the working folder only, unless
    the command line names another, and where it uploads (push_to_hub) that is shown and asked about first.

    Examples:

        dspark train --config examples/recipes/embedded.yaml
        dspark train --config examples/recipes/embedded.yaml "data=[text.jsonl]" max_steps=500 block_size=5 --resume
        dspark train --config examples/recipes/qwen3-4b.yaml features=online --estimate
        dspark train target=org/Model "data=[text.jsonl]" output_dir=runs/first num_hidden_layers=2 bf16=true
        accelerate launch --config_file examples/accelerate/ddp.yaml $(which dspark) train --config RECIPE.yaml
    """
    from dspark_hf.trainers.recipes.recipe import load_recipe

    recipe = load_recipe(config, [*(overrides or ()), *(["strict=true"] if strict else [])])
    console = Console(highlight=False)
    if estimate:
        _print_estimate(recipe, console, trust_remote_code)
        return
    # Before anything is loaded.
    training = recipe.training_arguments()
    if recipe.training.get("disable_tqdm") is None and not sys.stderr.isatty():
        training.disable_tqdm = True  # in a log file bars redraw over each other
    if training.push_to_hub and training.process_index == 0:
        _ask(training, yes)
    if absent := [file for file in recipe.data or () if not Path(file).is_file()]:
        raise ValueError(f"There is no file {absent[0]} (data of the recipe). Write it with `dspark regenerate`.")
    from transformers import AutoModelForCausalLM

    from dspark_hf import AutoDrafter
    from dspark_hf.cli.models import load_target_tokenizer, target_place
    from dspark_hf.hub.embedded import resolve_drafter
    from dspark_hf.trainers.recipes.run import train_drafter

    tokenizer = load_target_tokenizer(recipe.target, trust_remote_code=trust_remote_code)
    drafter = None
    if recipe.start_from is not None:
        drafter = AutoDrafter.from_pretrained(resolve_drafter(recipe.start_from))
    with target_place(recipe.target, trust_remote_code) as (path, trust):
        target = AutoModelForCausalLM.from_pretrained(path, dtype=recipe.target_dtype, **trust)
    trainer, metrics = train_drafter(recipe, target, tokenizer, training, drafter=drafter, resume=resume)
    if trainer.is_world_process_zero():
        console.print(_result_table(metrics, recipe))
        console.print(plain(f"Saved to {training.output_dir}"))


def _ask(training: Any, yes: bool) -> None:
    from dspark_hf.cli.upload import check_can_ask, confirm_upload

    check_can_ask(yes, "dspark train with push_to_hub")
    # As the trainer names it.
    repo_id = training.hub_model_id or Path(training.output_dir).absolute().name
    what = f"the drafter of {training.output_dir} (its own files, no text and no states)"
    confirm_upload(repo_id, what, private=training.hub_private_repo, yes=yes, revision=training.hub_revision)


def _result_table(metrics: dict[str, Any], recipe: Any) -> Table:
    table = Table(title="Held out", show_header=False)
    for name in ("eval_tau", "eval_expected_tau", "eval_greedy_tau", "eval_loss"):
        if name in metrics:
            table.add_row(name.removeprefix("eval_"), f"{metrics[name]:.3f}")
    slots = [value for name, value in metrics.items() if name.startswith("eval_accept_rate_slot_")]
    if slots:
        table.add_row("accepted per slot, all before accepted", "  ".join(f"{rate:.2f}" for rate in slots))
    if recipe.published:
        published = "  ".join(f"{name} {tau}" for name, tau in recipe.published.items())
        table.add_row(plain(recipe.paper or "published"), plain(published))
    return table


def _print_estimate(recipe: Any, console: Console, trust_remote_code: bool) -> None:
    from transformers import AutoConfig

    from dspark_hf.cli.models import target_place
    from dspark_hf.trainers.recipes.estimate import estimate_training

    config = None
    if not recipe.estimate.get("target"):
        with target_place(recipe.target, trust_remote_code) as (path, trust):
            config = AutoConfig.from_pretrained(path, **trust)
    found = estimate_training(recipe, config, _counted_tokens(recipe, config, trust_remote_code))
    table = Table(title=plain(f"{recipe.target}, features: {recipe.features}", "table.title"), show_header=False)
    table.add_row("drafter", f"{found.num_parameters / 1e6:.1f}M parameters")
    for name in ("memory", "drafter", "target", "activations", "batch", "loss"):
        label = "memory of a process" if name == "memory" else f"  of it {name}"
        table.add_row(label, f"{getattr(found, name) / 1e9:.2f} GB")
    tokens = (
        "not known: give data, or estimate.tokens" if found.num_tokens is None else f"{found.num_tokens:,.0f} tokens"
    )
    table.add_row("text", tokens)
    for dtype in ("bf16", "fp8", "int8", "int4"):
        size = "" if found.cache is None else f"{found.cache[dtype] / 1e9:,.1f} GB, "
        table.add_row(f"a cache in {dtype}", f"{size}{found.cache_per_token[dtype]:,.0f} bytes a token")
    console.print(table)
    for note in found.notes:
        console.print(plain(note))


def _counted_tokens(recipe: Any, config: Any, trust_remote_code: bool) -> int | None:
    """Tokens of the recipe's data, if they are there; of many conversations, estimated from some."""
    if not recipe.data or not all(Path(file).is_file() for file in recipe.data):
        return None
    from transformers import AutoConfig

    from dspark_hf.cli.models import load_target_tokenizer
    from dspark_hf.data.cache import estimate_target_cache
    from dspark_hf.data.conversation_files import iterate_places
    from dspark_hf.data.left_out import LeftOut

    config = config or AutoConfig.for_model(**recipe.estimate["target"])
    tokenizer = load_target_tokenizer(recipe.target, trust_remote_code=trust_remote_code)
    rows = [row for file in recipe.data for _, row in iterate_places(file, LeftOut(recipe.strict))]
    options = {"max_length": recipe.max_length, "keep_special_tokens": recipe.keep_special_tokens}
    return estimate_target_cache(config, rows, num_taps=1, tokenizer=tokenizer, **options).num_tokens
