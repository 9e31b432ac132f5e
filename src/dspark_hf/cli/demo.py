"""`dspark demo`: see a drafter work, then see what it is worth."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dspark_hf.cli.options import (
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    MaxNewTokensOption,
    TargetOption,
)

PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Give me three tips for learning a new language.",
    "Explain in simple words why the sky is blue.",
    "Write a short email that thanks a colleague for their help.",
)


def demo(
    target: TargetOption = "embedded",
    drafter: DrafterOption = "embedded",
    max_new_tokens: MaxNewTokensOption = 96,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "auto",
    json: JsonOption = None,
) -> None:
    """Answer a few prompts with a drafter, text as it is made, and compare with plain generate().

    Green tokens were drafted and accepted; the others are the target's own.

    Example:

        dspark demo --max-new-tokens 64
    """
    from dspark_hf.cli.models import check_output, load_models

    check_output(json)
    console = Console(highlight=False)
    models = load_models(target, drafter, dtype=dtype, device=device)
    result = _run(models, max_new_tokens, console)
    console.print(_table(result))
    if json is not None:
        _write(json, result, models)


def _run(models: Any, max_new_tokens: int, console: Console) -> dict[str, Any]:
    """Stream every prompt's answer, run it again without the drafter, and sum up."""
    from dspark_hf.cli.stream import DRAFTED_STYLE, RoundStreamer
    from dspark_hf.evaluation import DecodingSettings, compare, encode_prompts, summarize, warm_up

    settings = DecodingSettings(max_new_tokens)
    inputs = [encode_prompts([text], models.tokenizer) for text in PROMPTS]
    warm_up(models.target, models.drafter, inputs[0], settings)
    console.print(f"[{DRAFTED_STYLE}]drafted and accepted[/]  the target's own\n")
    streamer = RoundStreamer(models.tokenizer, console)
    comparisons = []
    for text, batch in zip(PROMPTS, inputs, strict=True):
        console.print(f"[bold]> {text}[/]")
        comparisons.append(compare(models.target, models.drafter, batch, settings, streamer=streamer))
        console.print()
    return summarize(models.target, comparisons, greedy=True)


def _table(result: dict[str, Any]) -> Table:
    identical = result["identical"]
    table = Table(title=f"{len(PROMPTS)} prompts, greedy, one process", caption=_about_ties(identical))
    table.add_column("")
    table.add_column("plain generate()", justify="right")
    table.add_column("DSpark", justify="right")
    for name, label in (("tokens", "tokens"), ("seconds", "seconds"), ("tokens_per_second", "tokens/s")):
        table.add_row(label, *(_number(result[side][name]) for side in ("plain", "speculative")))
    table.add_row("ratio", "1.00", f"[bold]{result['ratio']['total']:.2f}[/]")
    table.add_row("tau (tokens per round)", "1.00", f"[bold]{result['tau']:.2f}[/]")
    num_identical, num_prompts = identical["num_identical"], identical["num_prompts"]
    verdict = "yes" if num_identical == num_prompts else f"{num_identical} of {num_prompts} prompts"
    table.add_row("identical ids", "", f"[bold]{verdict}[/]")
    return table


def _about_ties(identical: dict[str, Any]) -> str | None:
    """What the target's logits say where ids part; `None` where they never do."""
    if not identical["differences"]:
        return None
    steps = max(difference["gap"] / difference["spacing"] for difference in identical["differences"])
    return (
        f"Where ids part, the target's two best logits lie at most {steps:.3g} rounding steps of its dtype apart: "
        "it is undecided there. In float32 (--dtype float32) ids are identical."
    )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def _write(path: Path, result: dict[str, Any], models: Any) -> None:
    from dspark_hf.evaluation import provenance, write_json

    write_json(path, {**result, "provenance": provenance(models.target.device)})
