"""`dspark serve`: an OpenAI-compatible server for a target with its drafter."""

from typing import Annotated

import typer

from dspark_hf.cli.options import DeviceOption, ThinkingOption, TrustOption


def serve(
    target: Annotated[
        str, typer.Argument(help="The target, or what holds both models: a repository, a folder, or 'embedded'.")
    ],
    drafter: Annotated[
        str | None, typer.Option(help="The drafter: a repository or a folder. Left out where TARGET holds it.")
    ] = None,
    cb: Annotated[
        bool, typer.Option("--cb", help="Batch requests as they come, instead of answering one after the other.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "localhost",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8000,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or 'auto' (the target's own).")] = "auto",
    device: DeviceOption = "auto",
    thinking: ThinkingOption = None,
    cb_page_size: Annotated[int | None, typer.Option(min=4, help="With --cb: tokens of a page of the cache.")] = None,
    cb_num_blocks: Annotated[int | None, typer.Option(min=1, help="With --cb: blocks of the cache.")] = None,
    cb_max_batch_tokens: Annotated[
        int | None, typer.Option(min=8, help="With --cb: tokens that go through the target at once.")
    ] = None,
    vllm: Annotated[bool, typer.Option("--vllm", help="Print the command for vLLM instead.")] = False,
    sglang: Annotated[bool, typer.Option("--sglang", help="Print the command for SGLang instead.")] = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Serve a target with its drafter: /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics.

    It is transformers' server; answers are the target's own, in fewer of its passes. usage tells drafts that were
    accepted and rejected.

    Examples:

        dspark serve embedded
        dspark serve org/Model --drafter org/Model-drafter --cb --port 8000
        dspark serve org/Model-DSpark
        dspark serve org/Model --drafter org/Model-drafter --vllm
    """
    if vllm or sglang:
        from dspark_hf.cli.serving.engines import engine_commands

        for command in engine_commands(target, drafter, vllm=vllm, sglang=sglang):
            typer.echo(command)
        return
    try:
        from dspark_hf.serving.server.app import make_serving
    except ImportError as error:
        raise ImportError(f"Serving needs more packages ({error}): pip install 'dspark_hf[serve]'.") from None
    from dspark_hf.cli.models import check_device, check_dtype

    batching = {"page_size": cb_page_size, "num_blocks": cb_num_blocks, "max_batch_tokens": cb_max_batch_tokens}
    batching = {name: value for name, value in batching.items() if value is not None}
    if batching and not cb:
        raise ValueError("The options --cb-... are for --cb: give that, too, or leave them out.")
    from transformers import ContinuousBatchingConfig

    serving = make_serving(
        target,
        drafter,
        is_batched=cb,
        batching_config=ContinuousBatchingConfig(**batching) if batching else None,
        chat_template_kwargs=None if thinking is None else {"enable_thinking": thinking},
        device=str(check_device(device)),
        dtype=check_dtype(dtype, auto=True),
        trust_remote_code=trust_remote_code,
    )
    typer.echo(f"ready: http://{host}:{port}/v1 serves {target!r}", err=True)
    serving.run(host, port)
