"""`dspark bench generate`: plain generation against a drafter on the same prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dspark_hf.cli.options import (
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    MaxNewTokensOption,
    PolicyOption,
    ReasoningEffortOption,
    ResumeOption,
    SeedOption,
    TargetOption,
    TemperatureOption,
    ThinkingOption,
    TrustOption,
)
from dspark_hf.cli.terminal import plain


def generate(
    data: Annotated[Path, typer.Option(help="JSON lines whose records have `turns` or `messages`.")],
    target: TargetOption = "embedded",
    drafter: DrafterOption = "embedded",
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts to take from the top; all by default.")] = None,
    max_new_tokens: MaxNewTokensOption = 128,
    temperature: TemperatureOption = 0.0,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts a call.")] = 1,
    seed: SeedOption = 0,
    tau_only: Annotated[bool, typer.Option("--tau-only", help="Leave the plain runs out.")] = False,
    policy: PolicyOption = "auto",
    dtype_prompts: Annotated[
        int, typer.Option(min=0, help="Prompts on which plain generate() is timed in other dtypes; 0 leaves it out.")
    ] = 3,
    lookup: Annotated[
        bool | None,
        typer.Option(help="Look drafts up in the text everywhere, or nowhere; by default as generate() does."),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Let DSpark's rounds go through torch.compile.")] = False,
    rival_lookup: Annotated[
        int, typer.Option(min=0, help="Also time transformers' prompt lookup with so many tokens; 0 leaves it out.")
    ] = 0,
    thinking: ThinkingOption = None,
    reasoning_effort: ReasoningEffortOption = None,
    trust_remote_code: TrustOption = False,
    json: JsonOption = None,
    resume: ResumeOption = False,
) -> None:
    """Run plain generate() and DSpark on the same prompts and compare.

    With --json a run can be stopped at any time: what is measured is kept beside that file, and --resume goes on.

    Example:

        dspark bench generate --data prompts.jsonl --limit 20 --json result.json
    """
    from dspark_hf.cli.models import check_dtype, check_output, load_models
    from dspark_hf.evaluation import (
        BenchmarkSettings,
        Comparison,
        journal_path,
        load_prompts,
        provenance,
        run_benchmark,
        summarize,
        tau_of,
        write_json,
    )

    settings = BenchmarkSettings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        batch_size=batch_size,
        seed=seed,
        tau_only=tau_only,
        policy=policy,
        num_dtype_prompts=dtype_prompts,
        lookup=lookup,
        compile=compile,
        rival_lookup=rival_lookup,
        thinking=thinking,
        reasoning_effort=reasoning_effort,
    )
    prompts = load_prompts(data, limit)
    check_output(json)
    journal = journal_path(json, resume)
    console = Console(highlight=False)
    models = load_models(target, drafter, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    names = {"target": target, "drafter": drafter, "data": str(data), "dtype": check_dtype(dtype)}
    done: list[Comparison] = []
    with _progress_bar(console) as bar:
        task = bar.add_task("prompts", total=len(prompts), note="")

        def report(num_done: int, comparisons: Sequence[Comparison]) -> None:
            done[:] = comparisons
            bar.update(task, completed=num_done, note=f"tau {tau_of(comparisons):.2f}")

        try:
            result = run_benchmark(
                models.target,
                models.drafter,
                models.tokenizer,
                prompts,
                settings,
                report,
                journal=journal,
                resume=resume,
            )
        except KeyboardInterrupt:
            if done:
                console.print(_table({**names, **summarize(models.target, done, greedy=False)}))
            raise
    result = {**names, **result, "provenance": provenance(models.target.device)}
    if json is not None:
        write_json(json, result)
        journal.unlink()
    console.print(_table(result))


def _progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console
    )


def _table(result: dict[str, Any]) -> Table:
    """The result's main figures, one a row."""
    title = f"{result['data']}: {result['num_prompts']} prompts, {result['dtype']}"
    table = Table(title=plain(title, "table.title"), show_header=False)
    for name, value in _rows(result):
        table.add_row(name, value)
    return table


def _rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    speculative, plain, share = result["speculative"], result["plain"], result["time_share"]
    rows = [
        ("tau (tokens per round)", f"{result['tau']:.3f} over {result['num_rounds']} rounds"),
        ("drafts looked up", f"in {result['lookup_share']:.0%} of verifications"),
        ("the drafter's slots, accepted", "  ".join(f"{rate:.2f}" for rate in result["accepted_per_slot"])),
        ("DSpark", f"{speculative['tokens_per_second']:.1f} tokens/s, {speculative['tokens']} tokens"),
        ("time in target, drafter, rest", "not measured" if share is None else _shares(share)),
    ]
    if plain is None:
        return rows
    ratio = result["ratio"]
    rows += [
        ("plain generate()", f"{plain['tokens_per_second']:.1f} tokens/s, {plain['tokens']} tokens"),
        ("ratio", f"{ratio['median']:.2f} median over prompts, {ratio['total']:.2f} total"),
    ]
    if "median_to_fastest_plain" in ratio:
        fastest = f"ratio to plain in {ratio['fastest_plain_dtype']}"
        rows.append(
            (fastest, f"{ratio['median_to_fastest_plain']:.2f} median, {ratio['total_to_fastest_plain']:.2f} total")
        )
    if result.get("efficiency", {}).get("median") is not None:
        pieces = result["efficiency"]
        step = pieces["plain_step_seconds"]
        text = f"verification {pieces['verify_seconds'] / step:.2f}, proposal {pieces['draft_seconds'] / step:.2f}"
        rows.append(("efficiency", f"{pieces['median']:.2f} median; in plain steps, alone: {text}"))
    if "rival_lookup" in result:
        rival = result["rival_lookup"]
        text = (
            f"{rival['tokens_per_second']:.1f} tokens/s; DSpark is {rival['median_ratio']:.2f} times as fast (median)"
        )
        rows.append(("transformers' prompt lookup", text))
    if result["identical"] is not None:
        rows.append(("identical ids", _identical(result["identical"])))
    return rows


def _shares(share: dict[str, float]) -> str:
    return "  ".join(f"{share[part]:.1%}" for part in ("target", "drafter", "rest"))


def _identical(identical: dict[str, Any]) -> str:
    text = f"{identical['num_identical']} of {identical['num_prompts']} prompts"
    if not identical["differences"]:
        return text
    steps = [difference["gap"] / difference["spacing"] for difference in identical["differences"]]
    return f"{text}; the others part at logit gaps of {min(steps):.3g} to {max(steps):.3g} rounding steps"
