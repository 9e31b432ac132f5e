"""`dspark calibrate`: temperatures that make a drafter's confidence come true."""

from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dspark_hf.cli.options import DeviceOption, DtypeOption, SeedOption, TrustOption


def calibrate(
    target: Annotated[str, typer.Argument(help="The target: a repository, a folder, or 'embedded'.")],
    drafter: Annotated[str, typer.Argument(help="The drafter: a repository, a folder, or 'embedded'.")],
    data: Annotated[Path, typer.Option(help="Held-out prompts: JSON lines with `turns` or `messages`.")],
    out: Annotated[
        Path, typer.Option(help="File (.json) or folder to write; in the drafter's folder it is loaded with it.")
    ] = Path("calibration.json"),
    limit: Annotated[int | None, typer.Option(min=2, help="Prompts to take from the top; all by default.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Most new tokens a prompt.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers made at once.")] = 16,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "auto",
    plots: Annotated[Path | None, typer.Option(help="Folder for two reliability plots.")] = None,
    seed: SeedOption = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run of the same --out that was stopped.")
    ] = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Fit one temperature a slot, for greedy decoding and for T = 1, so that survival is as often true as it says.

    The target answers the prompts, the drafter drafts at every place, every other answer is fitted on, and the
    figures are those of the rest. A run can be stopped at any time, and --resume goes on.

    Example:

        dspark calibrate embedded embedded --data prompts.jsonl --limit 40 --out calibration.json
    """
    from dspark_hf.cli.models import check_output, load_models
    from dspark_hf.evaluation import load_prompts
    from dspark_hf.evaluation.lengths.calibration import calibrate as run
    from dspark_hf.generation.lengths.calibration import FILE_NAME
    from dspark_hf.publishing.cards.plots import plot_reliability

    prompts = load_prompts(data, limit)
    # A folder need not be there yet.
    out = out if out.suffix == ".json" and not out.is_dir() else out / FILE_NAME
    check_output(out)
    models = load_models(target, drafter, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    console, journal = Console(highlight=False), out.with_name(f"{out.name}.unfinished.jsonl")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        tasks = {mode: bar.add_task(mode, total=len(prompts)) for mode in ("greedy", "sampled")}
        calibration = run(
            models.target, models.drafter, models.tokenizer, prompts, data=data.name, max_new_tokens=max_new_tokens,
            batch_size=batch_size, seed=seed, journal=journal, resume=resume,
            report=lambda mode, num_done: bar.update(tasks[mode], completed=num_done),
        )  # fmt: skip
    calibration.save(out)
    for mode in tasks:
        journal.with_name(f"{journal.name}.{mode}").unlink()
        if plots is not None:
            figures = calibration.figures[mode]
            lines = {name: {"reliability": figures[name]["reliability"]} for name in ("before", "after")}
            plot_reliability(plots / f"reliability-{mode}.png", lines)
    console.print(_table(calibration))
    for mode in tasks:
        before, after = (fmean(calibration.figures[mode][name]["ece"]) for name in ("before", "after"))
        if after > before:
            console.print(
                f"{mode}: with these temperatures survival is further off than without, by {after:.3f} after "
                f"{before:.3f} on average. Take more prompts; if it stays so, temperatures cannot mend this head, and "
                "the file is better left out."
            )
    console.print(f"written to {out}", markup=False)


def _table(calibration) -> Table:
    table = Table("slot", "temperature", "ECE before, after", "AUROC before, after", "Brier before, after")
    modes = (("greedy", calibration.temperatures), ("sampled", calibration.sampled_temperatures))
    for mode, temperatures in modes:
        before, after = (calibration.figures[mode][name] for name in ("before", "after"))
        for slot, temperature in enumerate(temperatures):
            pairs = [[_figure(one[name][slot]) for one in (before, after)] for name in ("ece", "auroc", "brier")]
            table.add_row(f"{mode} {slot + 1}", f"{temperature:.2f}", *map(", ".join, pairs))
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
