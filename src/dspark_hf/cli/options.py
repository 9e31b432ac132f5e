"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

TargetOption = Annotated[
    str, typer.Option(help="The target: a model repository, a folder, or 'embedded' (SmolLM2-135M-Instruct).")
]
DrafterOption = Annotated[
    str, typer.Option(help="The drafter: a repository, a folder, or 'embedded' (the one shipped for that target).")
]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16 or float16; fp32, bf16 and fp16 for short.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:N, or 'auto' (cuda where there is one).")]
MaxNewTokensOption = Annotated[int, typer.Option(min=1, help="Most new tokens a prompt.")]
TemperatureOption = Annotated[float, typer.Option(min=0.0, help="0 decodes greedily.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the sampling.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with a stopped run of the same file.")]
KeepSpecialTokensOption = Annotated[
    bool,
    typer.Option("--keep-special-tokens", help="Keep conversations whose text spells special tokens of the target."),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let code of the target's repository run: its model, and the file that renders its chats.",
    ),
]
ThinkingOption = Annotated[
    bool | None,
    typer.Option("--thinking/--no-thinking", help="Whether the target thinks, by its chat template."),
]
ReasoningEffortOption = Annotated[
    str | None, typer.Option(help="How much it thinks, in words of its chat template: high, max, ...")
]
StrictOption = Annotated[
    bool,
    typer.Option("--strict", help="Stop at a conversation that cannot be read or encoded."),
]
