"""`dspark regenerate`: training text written by the target itself."""

from pathlib import Path
from typing import Annotated

import typer


def regenerate(
    out: Annotated[Path, typer.Option(help="JSONL file to write; its provenance goes beside it.")],
    target: Annotated[str, typer.Option(help="Model repository or folder, or 'embedded'.")] = "embedded",
    synthesize: Annotated[int | None, typer.Option(help="Let the target invent this many prompts.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSONL file of 'messages' or 'turns' records.")] = None,
    openings: Annotated[Path | None, typer.Option(help="Beginnings of invented prompts, one a line.")] = None,
    batch_size: Annotated[int, typer.Option(help="Answers written at once.")] = 128,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 160,
    max_prompt_tokens: Annotated[int, typer.Option(help="Longest invented prompt, in tokens.")] = 40,
    temperature: Annotated[float, typer.Option(help="Temperature of the answers; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of all sampling.")] = 0,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32, or auto (as saved).")] = "bfloat16",
    resume: Annotated[bool, typer.Option("--resume", help="Continue an existing file.")] = False,
    exclude: Annotated[Path | None, typer.Option(help="JSONL file whose prompts must not occur.")] = None,
) -> None:
    """Write training text: the target answers given prompts, or prompts that it invents.

    A run can be stopped at any time: finished conversations stay usable, and --resume goes on.

    Examples:

        dspark regenerate --target embedded --synthesize 2000 --out data.jsonl

        dspark regenerate --target DIR --prompts FILE.jsonl --out data.jsonl

        dspark regenerate --synthesize 6000 --seed 1 --exclude heldout.jsonl --out data.jsonl --resume

        dspark regenerate --synthesize 6000 --openings examples/openings.txt --out data.jsonl
    """
    if (synthesize is None) == (prompts is None):
        raise ValueError("Say where the prompts come from: either --synthesize NUM or --prompts FILE.jsonl.")
    if prompts is not None and openings is not None:
        raise ValueError("--openings begins prompts that the target invents; it does not go with --prompts.")
    if dtype not in ("bfloat16", "float16", "float32", "auto"):
        raise ValueError(f"Expected --dtype bfloat16, float16, float32 or auto, got {dtype!r}.")
    # Imported here, so that `dspark --help` does not load torch.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dspark_hf.data import regenerate as data
    from dspark_hf.hub.embedded import resolve_target

    folder = resolve_target(target)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    settings = {
        "seed": seed,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "exclude": exclude,
        "resume": resume,
    }
    if synthesize is not None:
        invented = {"openings": openings, "max_prompt_tokens": max_prompt_tokens}
        num_lines = data.synthesize(model, tokenizer, synthesize, out, **invented, **settings)
    else:
        num_lines = data.regenerate(model, tokenizer, prompts, out, **settings)
    typer.echo(f"{out}: {num_lines} conversations")
