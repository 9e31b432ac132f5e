"""`dspark bench generate`: how close the decoding loop comes to what its passes allow."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dspark_hf.cli.evaluation.tables import progress_bar, show_tables
from dspark_hf.cli.options import (
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    MaxNewTokensOption,
    ReasoningEffortOption,
    TargetOption,
    ThinkingOption,
    TrustOption,
)


def generate(
    data: Annotated[Path, typer.Option(help="JSON lines whose records have `turns` or `messages`.")],
    target: TargetOption = "embedded",
    drafter: DrafterOption = "embedded",
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts to take, evenly spread; all by default.")] = None,
    max_new_tokens: MaxNewTokensOption = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts a call.")] = 1,
    thinking: ThinkingOption = None,
    reasoning_effort: ReasoningEffortOption = None,
    trust_remote_code: TrustOption = False,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "auto",
    plain_dtypes: Annotated[
        bool, typer.Option(help="Also time plain generate() in float32 and bfloat16, whichever --dtype is.")
    ] = True,
    json: JsonOption = None,
) -> None:
    """Time a drafter alone beside the passes that its rounds consist of: what is lost between them.

    Greedy, every slot verified, without lookup. Speed and quality on tasks are `dspark evaluate`'s.

    Example:

        dspark bench generate --data prompts.jsonl --limit 10 --json result.json
    """
    import torch

    from dspark_hf.cli.models import check_output, load_models
    from dspark_hf.evaluation import (
        EvaluationSettings,
        PrecisionCopies,
        drafter_way,
        evaluate,
        load_task,
        plain_way,
        provenance,
        write_json,
    )
    from dspark_hf.evaluation.reporting.tables import conditions, headline, time_table

    check_output(json)
    task = load_task(str(data), limit=limit)
    settings = EvaluationSettings(
        max_new_tokens=max_new_tokens,
        batch_sizes=(batch_size,),
        thinking=thinking,
        reasoning_effort=reasoning_effort,
        time_pieces=True,
    )
    models = load_models(target, drafter, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    copies = PrecisionCopies(models.target)
    others = {torch.float32, torch.bfloat16} - {models.target.dtype} if plain_dtypes else set()
    ways = [drafter_way("drafter", models.drafter, "alone"), plain_way()]
    ways += [plain_way(copies.get(dtype)) for dtype in others]
    console = Console(highlight=False)
    with progress_bar(console) as bar:
        progress = bar.add_task("batches", total=None, note="")

        def report(num_done: int, num_all: int, name: str) -> None:
            bar.update(progress, completed=num_done, total=num_all, note=name)

        summary = evaluate(models.target, models.tokenizer, [task], ways, settings, report=report)
    if json is not None:
        write_json(json, {**summary, "provenance": provenance(models.target.device)})
    show_tables(console, [headline(summary), time_table(summary)], conditions(summary))
