"""`dspark bench sweep`: policies on lengths against each other, replayed on recorded blocks."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dspark_hf.cli.options import (
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    MaxNewTokensOption,
    ResumeOption,
    SeedOption,
    TargetOption,
    TrustOption,
)
from dspark_hf.cli.terminal import plain


def sweep(
    data: Annotated[list[Path], typer.Option(help="Prompts: JSON lines with `turns` or `messages`; may be repeated.")],
    target: TargetOption = "embedded",
    drafter: DrafterOption = "embedded",
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts to take of each file; all by default.")] = None,
    max_new_tokens: MaxNewTokensOption = 96,
    temperature: Annotated[list[float], typer.Option(min=0.0, help="0 decodes greedily; may be repeated.")] = (0, 0.7),
    quality: Annotated[
        list[str], typer.Option(help="The drafter (good), one with noise (poor), one untrained (useless).")
    ] = ("good", "poor", "useless"),
    batch_size: Annotated[list[int], typer.Option(min=1, help="Rows; may be repeated.")] = (1, 2, 4, 8, 16, 32, 64),
    cost: Annotated[
        list[Path] | None, typer.Option(help="Step costs that `dspark profile --out` wrote; a rule of thumb without.")
    ] = None,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "auto",
    plots: Annotated[Path | None, typer.Option(help="Folder for a picture of each sweep.")] = None,
    seed: SeedOption = 0,
    json: JsonOption = None,
    resume: ResumeOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Record what a drafter drafts along the target's answers, and replay every policy on it at the cost of a table.

    Nothing is timed but the decisions themselves: speeds are by the table, in plain steps.

    With --json a run can be stopped at any time: what is recorded is kept beside that file, and --resume goes on.

    Example:

        dspark bench sweep --data prompts.jsonl --limit 10 --cost cost.json --json sweep.json --plots plots
    """
    from dspark_hf.cli.models import check_output, load_models
    from dspark_hf.evaluation import DecodingSettings, journal_path, load_prompts, provenance, write_json
    from dspark_hf.evaluation.lengths.block_records import record_answers
    from dspark_hf.evaluation.lengths.sweep import check_quality, drafter_of_quality, plot_sweep
    from dspark_hf.evaluation.lengths.sweep import sweep as run
    from dspark_hf.generation import StepCost
    from dspark_hf.generation.lengths.cost_files import load_cost

    for kind in quality:
        check_quality(kind)
    prompts = [prompt for path in data for prompt in load_prompts(path, limit)]
    costs = {path.stem: load_cost(path) for path in cost or ()}
    check_output(json)
    journal = journal_path(json, resume)
    models = load_models(target, drafter, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    costs = costs or {"rule of thumb": StepCost.rule_of_thumb(models.target.device, models.target.dtype)}
    console, results, kept = Console(highlight=False), {}, []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        for kind in quality:
            one = drafter_of_quality(models.drafter, kind, seed)
            for warmth in temperature:
                name = f"{kind} drafter, T = {warmth:g}"
                task = bar.add_task(name, total=len(prompts))
                part = None if journal is None else journal.with_name(f"{journal.name}.{kind}-{warmth:g}")
                kept += [] if part is None else [part]
                records = record_answers(
                    models.target, one, models.tokenizer, prompts, DecodingSettings(max_new_tokens, warmth),
                    seed=seed, journal=part, resume=resume,
                    report=lambda num_done, task=task: bar.update(task, completed=num_done),
                )  # fmt: skip
                for label, table in costs.items():
                    results[f"{name}, {label}"] = run(records, table, batch_size, remembers=warmth == 0)
    for name, result in results.items():
        console.print(_table(name, result))
        if plots is not None:
            file = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name)
            plot_sweep(plots / f"{file}.png", result, name)
    console.print(
        "Tokens a second by the table of costs, those of plain steps being 1; the best is that of plain steps, fixed "
        "numbers of drafts and thresholds.",
        style="dim",
    )
    if json is not None:
        made_with = {"data": [str(path) for path in data], "limit": limit, "max_new_tokens": max_new_tokens}
        tables = {label: asdict(table) for label, table in costs.items()}
        write_json(json, {"results": results, **made_with, "costs": tables, "provenance": provenance()})
        for part in kept:
            part.unlink(missing_ok=True)


def _table(name: str, result: dict[str, Any]) -> Table:
    """Speeds of policies by batch size, and the share of the best one's that `auto` reaches."""
    sizes, policies = list(result["policies"]), list(next(iter(result["policies"].values())))
    table = Table("rows", *sizes, title=plain(name, "table.title"))
    for policy in policies:
        table.add_row(policy, *(f"{result['policies'][size][policy]['speed']:.3f}" for size in sizes))
    table.add_section()
    table.add_row("auto to best", *(f"{result['auto'][size]['to_best']:.3f}" for size in sizes))
    return table
