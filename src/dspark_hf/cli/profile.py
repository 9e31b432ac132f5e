"""`dspark profile`: what passes and proposals take on this machine."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dspark_hf.cli.options import DeviceOption, DrafterOption, DtypeOption, SeedOption, TargetOption, TrustOption


def profile(
    target: TargetOption = "embedded",
    drafter: DrafterOption = "embedded",
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "auto",
    context: Annotated[
        list[int] | None,
        typer.Option(min=4, help="Tokens before a pass; may be repeated. 256 and 1024 by default, or what fits."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of a pass; 512 by default, 128 on a CPU.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times of each size; the median counts.")] = 7,
    out: Annotated[Path | None, typer.Option(help="File to write; by default where generate() finds it.")] = None,
    sglang: Annotated[Path | None, typer.Option(help="Also write it in SGLang's additive form to this file.")] = None,
    seed: SeedOption = 0,
    trust_remote_code: TrustOption = False,
) -> None:
    """Measure what the target's passes and the drafter's proposals take, so that generate() knows what drafts cost.

    Nothing else should run on the machine. The table holds for this device, these models, dtype, attention, number of
    threads and versions, and generate() uses it by itself where they are the same.

    Example:

        dspark profile --target embedded --drafter embedded --dtype bfloat16
    """
    from dspark_hf.cli.models import check_output, load_models
    from dspark_hf.evaluation.lengths.profiling import profile as run
    from dspark_hf.files import write_json
    from dspark_hf.generation.lengths.cost_files import save_cost, to_sglang

    for path in (out, sglang):
        check_output(path)
    models = load_models(target, drafter, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("passes")
        cost = run(
            models.target, models.drafter,
            contexts=context or None, max_tokens=max_tokens, num_repeats=repeats, seed=seed,
            report=lambda name, done, total: bar.update(task, description=name, completed=done, total=total),
        )  # fmt: skip
    path = save_cost(cost, out)
    if sglang is not None:
        write_json(sglang, to_sglang(cost))
    table = Table("tokens", *(f"behind {length}" for length in cost.contexts), title="in plain steps of one row")
    plain = [seconds[0] for seconds in cost.verify_seconds]
    for place, size in enumerate(cost.tokens):
        shown = [f"{row[place] / one:.2f}" for row, one in zip(cost.verify_seconds, plain, strict=True)]
        table.add_row(str(size), *shown)
    console.print(table)
    drafts = ", ".join(
        f"{rows}: {value / plain[0]:.2f}" for rows, value in zip(cost.rows, cost.draft_seconds, strict=True)
    )
    console.print(f"a proposal by rows: {drafts}")
    console.print(f"written to {path}{'' if sglang is None else f' and {sglang}'}", markup=False)
