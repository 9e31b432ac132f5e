"""`dspark chat`: talk to a target in the terminal."""

from typing import Annotated, Any

import typer
from rich.console import Console

from dspark_hf.cli.options import (
    DeviceOption,
    DrafterOption,
    DtypeOption,
    MaxNewTokensOption,
    ReasoningEffortOption,
    SeedOption,
    TargetOption,
    TemperatureOption,
    ThinkingOption,
    TrustOption,
)
from dspark_hf.cli.terminal import plain

_FORGET, _LEAVE = "/new", "/exit"


def chat(
    target: TargetOption = "embedded",
    drafter: DrafterOption = "embedded",
    system: Annotated[str | None, typer.Option(help="The system's message.")] = None,
    max_new_tokens: MaxNewTokensOption = 1024,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "auto",
    thinking: ThinkingOption = None,
    reasoning_effort: ReasoningEffortOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Talk to a target, drafted and accepted tokens in green, tau below them.

    All turns share one cache. /new forgets them, /exit or Ctrl-D ends, Ctrl-C breaks an answer off.

    Example:

        dspark chat --target org/Model --drafter org/Model-drafter --temperature 0.7
    """
    from transformers import set_seed

    from dspark_hf.cli.models import load_models
    from dspark_hf.cli.serving.live import answer_streamer
    from dspark_hf.data.chat import prompt_ids
    from dspark_hf.evaluation import DecodingSettings
    from dspark_hf.serving.conversation import Conversation

    options = DecodingSettings(max_new_tokens, temperature).generate_kwargs()
    form = {"thinking": thinking, "reasoning_effort": reasoning_effort}
    models = load_models(target, drafter, dtype=dtype, device=device, trust_remote_code=trust_remote_code, **form)
    tokenizer = models.tokenizer
    conversation = Conversation(
        models.target,
        models.drafter,
        lambda messages: prompt_ids(tokenizer, messages, **form),
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        system,
    )
    set_seed(seed)
    console = Console(highlight=False)
    while (text := _ask(console)) != _LEAVE:
        if text == _FORGET:
            conversation.forget()
        elif text:
            try:
                with answer_streamer(tokenizer, console, models.drafter) as streamer:
                    conversation.say(text, streamer, **options)
            except KeyboardInterrupt:
                console.print("\nbroken off; your message is taken back", style="dim")
            else:
                _print_figures(console, models.drafter.last_stats, conversation.stats)


def _ask(console: Console) -> str:
    try:
        return console.input("[bold]>[/] ").strip()
    except EOFError:
        console.print()
        return _LEAVE


def _print_figures(console: Console, answer: Any, whole: Any) -> None:
    from dspark_hf.cli.stream import figures

    text = figures(answer.new_tokens, answer.new_tokens / answer.total_seconds, answer.tau)
    text = f"{text}, of all answers {whole.tau:.2f}"
    console.print(plain(text, "dim"))
