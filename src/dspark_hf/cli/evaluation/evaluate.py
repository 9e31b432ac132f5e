"""`dspark evaluate`: tasks, drafters and rivals in one run."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from dspark_hf.cli.evaluation.tables import progress_bar, show_tables
from dspark_hf.cli.options import (
    DeviceOption,
    DtypeOption,
    MaxNewTokensOption,
    ReasoningEffortOption,
    SeedOption,
    TargetOption,
    ThinkingOption,
    TrustOption,
)


def evaluate(
    task: Annotated[
        list[str], typer.Option(help="A task, `all`, a JSONL file with `turns`, or TASK=FILE; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run: records of every round, and the summary.")],
    target: TargetOption = "embedded",
    drafter: Annotated[
        list[str] | None,
        typer.Option(help="A drafter's repository or folder, or NAME=PLACE; may be repeated. `embedded` by default."),
    ] = None,
    speculation: Annotated[
        list[str] | None,
        typer.Option(
            help="How the drafters are used: default (as generate() does), alone (every slot verified, no lookup), or "
            "SpeculationConfig's KEY=VALUE,...; may be repeated."
        ),
    ] = None,
    plain: Annotated[bool, typer.Option(help="Run plain generate() too, the baseline of ratios and ids.")] = True,
    static: Annotated[bool, typer.Option("--static", help="Also plain with a static cache and compile.")] = False,
    prompt_lookup: Annotated[
        list[int] | None, typer.Option(min=1, help="Also transformers' prompt lookup with so many tokens.")
    ] = None,
    assistant: Annotated[
        list[str] | None, typer.Option(help="Also transformers' assisted decoding with this smaller model.")
    ] = None,
    synthetic_acceptance: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="Also drafts that stand at this rate: the engine apart from a drafter."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most prompts of each task, evenly spread.")] = None,
    task_folder: Annotated[
        Path | None, typer.Option(help="Folder of JSONL files, one a task, to be read in place of the Hub's.")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(min=0, help="0 decodes greedily, which is the default; may be repeated.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Prompts a call, 1 by default; may be repeated.")
    ] = None,
    max_new_tokens: MaxNewTokensOption = 128,
    thinking: ThinkingOption = None,
    reasoning_effort: ReasoningEffortOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Leave the chat template out; only first turns are asked.")
    ] = False,
    trust_remote_code: TrustOption = False,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
) -> None:
    """Answer the prompts of tasks with drafters, plainly, and with what transformers has, and compare.

    Every call is one batch of prompts in all ways, interleaved. The folder keeps a record of every round; a run that
    was stopped goes on with --resume, and `dspark report` makes a page of it. Started by torchrun, processes share the
    work. Tasks: gsm8k, math500, aime25, mbpp, humaneval, livecodebench, mt-bench, alpaca, arena-hard-v2, spec-bench.

    Examples:

        dspark evaluate --task gsm8k --limit 50 --out runs/gsm8k
        dspark evaluate --task all --task-folder prompts/ --temperature 0 --temperature 1 --out runs/all
        dspark evaluate --task chat.jsonl --drafter old=runs/first --drafter new=runs/second --out runs/two
        torchrun --nproc-per-node 4 -m dspark_hf evaluate --task all --target org/Model --drafter org/D --out runs/all
    """
    from dspark_hf.cli.models import check_dtype, load_target
    from dspark_hf.evaluation import (
        EvaluationSettings,
        RunFolder,
        assistant_way,
        load_tasks,
        lookup_way,
        place_among_processes,
        plain_way,
        static_way,
    )
    from dspark_hf.evaluation import evaluate as run
    from dspark_hf.evaluation.reporting.tables import conditions, main_tables
    from dspark_hf.evaluation.running.journal import check_no_journal
    from dspark_hf.evaluation.running.ways import speculation_fields
    from dspark_hf.evaluation.tasks.loading import named_place
    from dspark_hf.hub.embedded import resolve_drafter

    settings = EvaluationSettings(
        max_new_tokens=max_new_tokens,
        temperatures=tuple(temperature or (0.0,)),
        batch_sizes=tuple(batch_size or (1,)),
        seed=seed,
        thinking=thinking,
        reasoning_effort=reasoning_effort,
        template=not raw,
    )
    if (out / "summary.json").exists():
        raise ValueError(
            f"{out} holds a finished run. Look at it with `dspark report {out}`, or choose another --out."
        )
    folder = RunFolder(out)
    folder.check_place()
    tasks = load_tasks(task, folder=task_folder, limit=limit)
    rank, num_processes = place_among_processes()
    if not resume:
        check_no_journal(folder.records(rank))
    if device == "auto" and num_processes > 1:
        device = _own_device()
    place = {"dtype": check_dtype(dtype), "device": device}
    speculations = list(speculation or ["default"])
    for one in speculations:
        speculation_fields(one)
    names = set()
    for one in drafter or ():
        name, path = named_place(one)
        resolve_drafter(path or name)
        short = name if path else _short(name)
        if short in names:
            raise ValueError(
                f"Two drafters are called {short!r}. Give one another name: --drafter NAME={path or name}."
            )
        names.add(short)
    form = {"thinking": thinking, "reasoning_effort": reasoning_effort}
    model, tokenizer = load_target(target, trust_remote_code=trust_remote_code, **place, **form)
    ways = [plain_way()] if plain else []
    ways += [static_way()] if static else []
    ways += [lookup_way(number) for number in prompt_lookup or ()]
    ways += [assistant_way(_short(name), load_target(name, **place)[0]) for name in assistant or ()]
    ways += _drafter_ways(drafter or ["embedded"], model, place["dtype"], speculations, synthetic_acceptance or ())
    console = Console(highlight=False)
    with progress_bar(console) as bar:
        progress = bar.add_task("batches", total=None, note="")

        num_known = 0

        def report(num_done: int, num_all: int, name: str) -> None:
            nonlocal num_known
            num_known = num_done
            bar.update(progress, completed=num_done, total=num_all, note=name)

        try:
            summary = run(model, tokenizer, tasks, ways, settings, out, resume=resume, report=report, rank=rank,
                          num_processes=num_processes)  # fmt: skip
        except KeyboardInterrupt:
            if num_known:
                partial = folder.summary()
                show_tables(console, main_tables(partial), conditions(partial))
            raise
    if summary["num_missing"]:
        console.print(f"{summary['num_missing']} calls are other processes'; the last to end writes the summary")
        return
    show_tables(console, main_tables(summary), conditions(summary))
    typer.echo(f"records and figures: {out}; a page of them: dspark report {shlex.quote(str(out))}")


def _drafter_ways(places, target, dtype, speculations, acceptances) -> list[Any]:
    """Every drafter as it is to be used, and the first with drafts that are made to stand."""
    from dspark_hf.cli.models import load_drafter
    from dspark_hf.evaluation import drafter_way, synthetic_way
    from dspark_hf.evaluation.tasks.loading import named_place

    ways: list[Any] = []
    for place in places:
        name, path = named_place(place)
        loaded = load_drafter(path or name, target, dtype=dtype)
        name = name if path else _short(name)
        ways += [drafter_way(name, loaded, speculation) for speculation in speculations]
        ways += [synthetic_way(name, loaded, acceptance) for acceptance in acceptances]
        acceptances = ()
    return ways


def _short(place: str) -> str:
    return place.rstrip("/").rsplit("/", 1)[-1]


def _own_device() -> str:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
