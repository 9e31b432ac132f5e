"""`dspark bench exactness`: whether speculative output is the target's."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from dspark_hf.cli.options import JsonOption, ResumeOption, SeedOption

_DIFFERS = 1


def exactness(
    num_prompts: Annotated[int, typer.Option(min=1, help="Random prompts for greedy runs.")] = 1000,
    num_samples: Annotated[int, typer.Option(min=1, help="Samples of each sampling mode.")] = 3000,
    seed: SeedOption = 0,
    json: JsonOption = None,
    resume: ResumeOption = False,
) -> None:
    """Check tiny random targets of several families: greedy ids against plain generate(), samples by chi-square.

    With --json a run can be stopped at any time: what is checked is kept beside that file, and --resume goes on.

    Exits with code 1 if anything differs from the target's output by more than a numerical tie.

    Example:

        dspark bench exactness --num-prompts 200 --json result.json
    """
    import warnings

    import transformers

    from dspark_hf.cli.models import check_output
    from dspark_hf.evaluation import journal_path, provenance, run_exactness, write_json

    check_output(json)
    journal = journal_path(json, resume)
    # Random lengths meet random options: warnings of generate() about them would drown the progress.
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore", UserWarning)
    console = Console(highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("prompts", total=num_prompts)

        def report(name: str, num_done: int) -> None:
            done = num_done == num_prompts
            bar.update(task, completed=num_done, description="sampling" if done else name)

        result = run_exactness(num_prompts, num_samples, seed, report, journal=journal, resume=resume)
    if json is not None:
        write_json(json, {**result, "provenance": provenance("cpu")})
        journal.unlink()
    console.print(_table(result))
    console.print("exact" if result["is_exact"] else "NOT exact")
    if not result["is_exact"]:
        raise typer.Exit(_DIFFERS)


def _table(result: dict[str, Any]) -> Table:
    table = Table(title=f"exactness, seed {result['seed']}", show_header=False)
    for family, check in result["greedy"].items():
        lens = "  ".join(f"{length}: {count}" for length, count in check["accepted_lens"].items())
        found = f"{check['num_prompts']} prompts, {len(check['differences'])} differ, {check['num_ties']} ties"
        table.add_row(f"greedy, {family}", f"{found}; rounds by accepted length {lens}")
    for check in result["sampling"]:
        candidates = "all" if check["num_candidates"] is None else check["num_candidates"]
        how = f"by {check['verification']}, {candidates} candidates"
        name = f"sampling, {check['mode']}, {how}, batch {check['batch_size']}"
        table.add_row(name, f"p = {check['p_value']:.3f} over {check['num_samples']} samples")
    return table
