"""`dspark regenerate`: training text written by the target itself."""

from pathlib import Path
from typing import Annotated

import typer

from dspark_hf.cli.options import (
    DeviceOption,
    KeepSpecialTokensOption,
    ReasoningEffortOption,
    SeedOption,
    TargetOption,
    TemperatureOption,
    ThinkingOption,
    TrustOption,
)
from dspark_hf.cli.terminal import visible


def regenerate(
    out: Annotated[Path, typer.Option(help="JSONL file to write; its provenance goes beside it.")],
    target: TargetOption = "embedded",
    synthesize: Annotated[int | None, typer.Option(help="Let the target invent this many prompts.")] = None,
    openings: Annotated[
        Path | None, typer.Option(exists=True, help="Beginnings of invented prompts, one a line.")
    ] = None,
    max_prompt_tokens: Annotated[int, typer.Option(help="Longest invented prompt, in tokens.")] = 40,
    prompts: Annotated[str | None, typer.Option(help="File of conversations, or a dataset's name or folder.")] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "train",
    limit: Annotated[int | None, typer.Option(help="Take so many prompts from the top.")] = None,
    server: Annotated[str | None, typer.Option(help="Address of an OpenAI-compatible server that has it.")] = None,
    concurrency: Annotated[int, typer.Option(help="Conversations under way at the server.")] = 32,
    timeout: Annotated[float, typer.Option(help="Seconds for an answer of the server, retries included.")] = 600.0,
    api_key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="Key of the server.")] = None,
    batch_size: Annotated[int, typer.Option(help="Answers written at once by a local target.")] = 128,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 160,
    temperature: TemperatureOption = 0.0,
    thinking: ThinkingOption = None,
    reasoning_effort: ReasoningEffortOption = None,
    trust_remote_code: TrustOption = False,
    keep_special_tokens: KeepSpecialTokensOption = False,
    seed: SeedOption = 0,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32, or auto (as saved).")] = "bfloat16",
    device: DeviceOption = "auto",
    attention: Annotated[str | None, typer.Option(help="The local target's attention, 'sdpa' or 'eager'.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an existing file.")] = False,
    exclude: Annotated[Path | None, typer.Option(exists=True, help="JSONL file whose prompts must not occur.")] = None,
    without_loops: Annotated[
        bool, typer.Option("--without-loops", help="Put answers that end in a loop into a file of their own.")
    ] = False,
) -> None:
    """Write training text: the target answers given prompts, or prompts that it invents.

    The target runs here, or behind a server. A run can be stopped at any time: finished conversations stay usable, and
    --resume goes on.

    Examples:

        dspark regenerate --target embedded --synthesize 2000 --out data.jsonl
        dspark regenerate --synthesize 6000 --openings examples/openings.txt --out data.jsonl --resume
        dspark regenerate --target DIR --prompts FILE.jsonl --out data.jsonl
        dspark regenerate --target Qwen/Qwen3-4B --server http://localhost:8000/v1 \\
            --prompts mlabonne/open-perfectblend --max-new-tokens 2048 --no-thinking --out data.jsonl --resume
    """
    if (synthesize is None) == (prompts is None):
        raise ValueError("Say where the prompts come from: either --synthesize NUM or --prompts FILE.jsonl.")
    if prompts is not None and openings is not None:
        raise ValueError("--openings begins prompts that the target invents; it does not go with --prompts.")
    if synthesize is not None and (limit is not None or server is not None):
        raise ValueError("--limit and --server go with --prompts: only a local target can invent prompts.")
    from dspark_hf.cli.models import check_dtype, load_target
    from dspark_hf.data.regeneration.answer_file import check_absent

    dtype = check_dtype(dtype, auto=True)
    if not resume:
        check_absent(out)
    settings = {"seed": seed, "exclude": exclude, "without_loops": without_loops, "resume": resume}
    form = {"thinking": thinking, "reasoning_effort": reasoning_effort}
    answers = {"max_new_tokens": max_new_tokens, "temperature": temperature, **form}
    place = {"dtype": dtype, "device": device, "attention": attention}
    loading = {**place, "trust_remote_code": trust_remote_code, **form}
    source = {"split": split, "limit": limit}
    if server is not None:
        from dspark_hf.data.regeneration.server import ServerAnswerer, regenerate_with_server

        answerer = ServerAnswerer(server, target, api_key=api_key, timeout=timeout, **answers)
        num_lines, _ = regenerate_with_server(answerer, prompts, out, concurrency=concurrency, **settings, **source)
    elif synthesize is not None:
        from dspark_hf.data.regeneration import synthesize as write

        settings |= {"batch_size": batch_size, "openings": openings, "max_prompt_tokens": max_prompt_tokens}
        num_lines = write(*load_target(target, **loading), synthesize, out, **settings, **answers)
    else:
        from dspark_hf.data.regeneration import regenerate as write

        settings |= {"batch_size": batch_size, "keep_special_tokens": keep_special_tokens, **source}
        num_lines = write(*load_target(target, **loading), prompts, out, **settings, **answers)
    failed = Path(f"{out}.failed.jsonl")
    if prompts is not None and failed.exists():
        num_failed = len(failed.read_text(encoding="utf-8").splitlines())
        typer.echo(visible(f"{num_failed} conversations failed: see {failed}, and try again with --resume"))
    loops = Path(f"{out}.loops.jsonl")
    if loops.exists():
        num_loops = len(loops.read_text(encoding="utf-8").splitlines())
        typer.echo(visible(f"{num_loops} conversations with a loop were left out: {loops}"))
    typer.echo(visible(f"{out}: {num_lines} conversations"))
