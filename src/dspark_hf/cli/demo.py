"""`dspark demo`: see a drafter work, then see what it is worth."""

from dataclasses import asdict
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
    TrustOption,
)

PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Write a Python function that checks whether a number is prime.",
    "Explain in simple words why the sky is blue.",
    "Write a short email that thanks a colleague for their help.",
)

_PLAIN, _ALONE, _WITH_LOOKUP = "plain", "DSpark", "DSpark with lookup"

# Rounding steps up to which two logits are taken to be tied: those of the passes that they come from add up.
_TIE = 8


def demo(
    target: TargetOption = "embedded",
    drafter: DrafterOption = "embedded",
    max_new_tokens: MaxNewTokensOption = 96,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = False,
    json: JsonOption = None,
) -> None:
    """Answer a few prompts with a drafter, text as it is made, and compare with plain generate().

    Green tokens were drafted and accepted; the others are the target's own.

    Example:

        dspark demo --max-new-tokens 64
    """
    from dspark_hf.cli.models import check_output, load_models
    from dspark_hf.processor import multiplies

    check_output(json)
    console = Console(highlight=False)
    console.print(
        f"{len(PROMPTS)} questions, answered while you read; each is then answered without lookup and by plain "
        "generate() too, and a table compares the three.\n"
    )
    models = load_models(target, drafter, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    result = _run(models, max_new_tokens, console)
    console.print(_table(result))
    if not multiplies(models.target.device, models.target.dtype):
        console.print(
            f"This processor has no instructions for {dtype} products, so a pass over several tokens takes nearly as "
            "long as so many passes over one: little can be won here beyond text that repeats itself. Processors with "
            "AVX-512 BF16 or AMX, and GPUs, have them."
        )
    if json is not None:
        _write(json, result, models)


def _run(models: Any, max_new_tokens: int, console: Console) -> dict[str, Any]:
    """Stream every prompt's answer, run it again without lookup and without the drafter, and sum up.

    The summary holds the figures of each way, by name.
    """
    from dspark_hf.cli.stream import DRAFTED_STYLE, RoundStreamer
    from dspark_hf.evaluation import (
        Call,
        DecodingSettings,
        PrecisionCopies,
        TieFinder,
        encode_prompts,
        figures,
        generate_plain,
        generate_speculative,
    )
    from dspark_hf.generation import SpeculationConfig

    target, drafter, tokenizer = models.target, models.drafter, models.tokenizer
    settings, short = DecodingSettings(max_new_tokens), DecodingSettings(min(16, max_new_tokens))
    both, alone = SpeculationConfig(prompt_lookup=True), SpeculationConfig(prompt_lookup=False)
    inputs = [encode_prompts([text], tokenizer) for text in PROMPTS]
    generate_speculative(target, drafter, inputs[0], short, both)
    generate_plain(target, inputs[0], short)
    console.print(f"[{DRAFTED_STYLE}]drafted and accepted[/]  the target's own\n")
    streamer, finder = RoundStreamer(tokenizer, console), TieFinder(PrecisionCopies(target), target.dtype)
    calls = []
    for text, batch in zip(PROMPTS, inputs, strict=True):
        console.print(f"[bold]> {text}[/]")
        runs = {
            _WITH_LOOKUP: generate_speculative(target, drafter, batch, settings, both, streamer=streamer),
            _PLAIN: generate_plain(target, batch, settings),
            _ALONE: generate_speculative(target, drafter, batch, settings, alone),
        }
        ids = batch["input_ids"][0].tolist()
        found = {name: finder.examine(ids, runs[_PLAIN].ids[0], runs[name].ids[0]) for name in (_ALONE, _WITH_LOOKUP)}
        differences = {name: [None if one is None else asdict(one)] for name, one in found.items()}
        prompts = [{"index": len(calls), "category": None, "ids": ids}]
        calls.append(Call("demo", 0, 0.0, 1, 0, prompts, runs, differences, {}))
        console.print()
    return {name: figures(calls, name) for name in (_PLAIN, _ALONE, _WITH_LOOKUP)}


def _table(result: dict[str, Any]) -> Table:
    ways = [result[_ALONE], result[_WITH_LOOKUP]]
    table = Table(title=f"{len(PROMPTS)} prompts, greedy, one process", caption=_about_ties(ways))
    table.add_column("")
    for way in ("plain generate()", _ALONE, _WITH_LOOKUP):
        table.add_column(way, justify="right")
    for name, label in (("tokens", "tokens"), ("seconds", "seconds"), ("tokens_per_second", "tokens/s")):
        table.add_row(label, *(_number(side[name]) for side in result.values()))
    table.add_row("ratio", "1.00", *(f"[bold]{way['ratio']['total']:.2f}[/]" for way in ways))
    table.add_row("tau (tokens per round)", "1.00", *(f"[bold]{way['tau']:.2f}[/]" for way in ways))
    table.add_row("same ids as plain, up to ties", "", *(f"[bold]{_verdict(way['identical'])}[/]" for way in ways))
    return table


def _verdict(identical: dict[str, Any]) -> str:
    num_tied = sum(_is_tie(difference) for difference in identical["differences"])
    if identical["num_identical"] + num_tied < identical["num_answers"]:
        return f"no: {identical['num_answers'] - identical['num_identical'] - num_tied} differ"
    return f"yes ({num_tied} with a tie)" if num_tied else "yes"


def _is_tie(difference: dict[str, Any]) -> bool:
    """Whether rounding alone decides between the two tokens."""
    return difference["gap"] <= _TIE * difference["spacing"]


def _about_ties(ways: list[dict[str, Any]]) -> str | None:
    """What the target's logits say where ids part; `None` where they never do."""
    differences = [difference for way in ways for difference in way["identical"]["differences"]]
    if not differences:
        return None
    steps = max(difference["gap"] / difference["spacing"] for difference in differences)
    return (
        "A tie: the target's two best logits lie so close together (here at most "
        f"{steps:.3g} rounding steps of its dtype) that rounding decides between them, and passes of several tokens "
        "round otherwise than those of one. --dtype float32 shows identical ids."
    )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def _write(path: Path, result: dict[str, Any], models: Any) -> None:
    from dspark_hf.evaluation import provenance, write_json

    write_json(path, {**result, "provenance": provenance(models.target.device)})
