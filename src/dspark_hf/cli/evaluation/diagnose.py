"""`dspark diagnose`: why hardly any draft is accepted."""

from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dspark_hf.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ReasoningEffortOption,
    ThinkingOption,
    TrustOption,
)
from dspark_hf.cli.terminal import plain

_MISFIT = 1


def diagnose(
    target: Annotated[str, typer.Argument(help="The target: a repository, a folder, or 'embedded'.")],
    drafter: Annotated[str, typer.Argument(help="The drafter: a repository, a folder, or 'embedded'.")],
    data: Annotated[Path | None, typer.Option(help="JSON lines with prompts; a few questions by default.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most prompts of --data.")] = 8,
    raw: Annotated[bool, typer.Option("--raw", help="Prompts are used without the chat template.")] = False,
    thinking: ThinkingOption = None,
    reasoning_effort: ReasoningEffortOption = None,
    trust_remote_code: TrustOption = False,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "auto",
    json: JsonOption = None,
) -> None:
    """Try a drafter as its config says and otherwise, and say what is wrong: a verdict, the line to change, evidence.

    Shifted taps, the other slot convention, block lengths, rope fields, dtypes, adapters, the form of prompts, another
    target, no training. The exit status is 0 if it fits, 1 if something is wrong, 2 if it could not be tried.

    Example:

        dspark diagnose org/Model org/Model-drafter
    """
    from dspark_hf.cli.models import check_dtype, check_output, load_drafter, load_target
    from dspark_hf.evaluation import diagnose as find_out
    from dspark_hf.evaluation import load_prompts, provenance, write_json
    from dspark_hf.hub.embedded import resolve_drafter

    check_output(json)
    dtype = check_dtype(dtype)
    prompts = None if data is None else load_prompts(data, limit)
    resolve_drafter(drafter)
    form = {"thinking": thinking, "reasoning_effort": reasoning_effort}
    model, tokenizer = load_target(target, dtype=dtype, device=device, trust_remote_code=trust_remote_code, **form)
    loaded = load_drafter(drafter, model, dtype=dtype, check_name=False)
    console = Console(highlight=False)
    # How many readings there are depends on what is found on the way.
    with console.status("the target answers") as status:
        tried = count(1)

        def report(reading: str) -> None:
            status.update(plain(f"reading {next(tried)}: {reading}"))

        found = find_out(model, loaded, tokenizer, prompts, template=not raw, report=report, **form)
    console.print(plain(found.verdict, "bold"))
    if found.remedy is not None:
        console.print(plain(found.remedy, "bold green"))
    table = Table(title=f"{found.num_places} blocks behind the target's own answers")
    for column in ("read", "slot 1 right", "drafts that stand", "slots"):
        table.add_column(column)
    for row in found.evidence:
        rate = f"{row['slot_1']:.1%}" if row["is_finite"] else "scores are no numbers"
        table.add_row(plain(row["reading"]), rate, f"{row['accepted']:.2f}", str(row["num_slots"]))
    console.print(table)
    if json is not None:
        write_json(json, {**vars(found), "target": target, "drafter": drafter, "provenance": provenance(model.device)})
    if not found.fits:
        raise typer.Exit(_MISFIT)
