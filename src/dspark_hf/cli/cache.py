"""`dspark cache`: the frozen target's hidden states on disk."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dspark_hf.cli.options import KeepSpecialTokensOption, StrictOption, TargetOption, TrustOption
from dspark_hf.cli.terminal import plain


def cache(
    out: Annotated[Path, typer.Option(help="Folder of the cache: a new one, or one to continue.")],
    data: Annotated[list[Path] | None, typer.Option(help="File of conversations; may be repeated.")] = None,
    target: TargetOption = "embedded",
    drafter: Annotated[str | None, typer.Option(help="Drafter whose taps to use: a repository or a folder.")] = None,
    tap: Annotated[list[int] | None, typer.Option(help="A tapped layer, 0-based; repeat for each.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32, fp16, bf16, fp8, int8 or int4.")] = "bf16",
    log_norm: Annotated[bool, typer.Option("--log-norm", help="Also store what a reduced vocabulary reads.")] = False,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens of a conversation that are used.")] = 4096,
    keep_special_tokens: KeepSpecialTokensOption = False,
    strict: StrictOption = False,
    trust_remote_code: TrustOption = False,
    target_dtype: Annotated[str, typer.Option(help="bfloat16, float16, float32, or auto (as saved).")] = "auto",
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard, in megabytes.")] = 256,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens per forward pass.")] = 4096,
    estimate: Annotated[bool, typer.Option("--estimate", help="Print the size in each dtype and stop.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read an existing cache once and stop.")] = False,
    push_to_hub: Annotated[str | None, typer.Option(help="Dataset repository to upload the cache to.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Run the target over conversations once and keep what a drafter learns from.

    A build can be stopped at any time; the same command goes on. Under torchrun each process takes a range of rows.

    Examples:

        dspark cache --data text.jsonl --out cache --dtype int4 --estimate
        dspark cache --data text.jsonl --out cache --dtype int4 --tap 2 --tap 10 --tap 18 --tap 26
        torchrun --nproc-per-node 8 -m dspark_hf cache --target org/Model --data text.jsonl --out cache
        dspark cache --out cache --verify
    """
    console = Console(highlight=False)
    if verify:
        from dspark_hf.data.cache import TargetCache

        found = TargetCache(out)
        found.verify()
        console.print(plain(f"{_summary(found)}: whole"))
        return
    if not data:
        raise ValueError("Say what to run the target on: --data FILE.jsonl.")
    if drafter is not None and tap:
        raise ValueError("--drafter names the taps already; give either it or --tap.")
    from transformers import AutoConfig

    from dspark_hf.cli import models
    from dspark_hf.data.cache import codecs
    from dspark_hf.data.conversation_files import iterate_places
    from dspark_hf.data.left_out import LeftOut

    target_dtype = models.check_dtype(target_dtype, "--target-dtype", auto=True)
    dtype = models.DTYPES.get(dtype, dtype)
    codecs.check_dtype(dtype)
    left_out = LeftOut(strict)
    rows = [record for path in data for _, record in iterate_places(path, left_out)]
    left_out.tell(", ".join(map(str, data)))
    tokenizer = models.load_target_tokenizer(target, trust_remote_code=trust_remote_code)
    with models.target_place(target, trust_remote_code) as (path, trust):
        config = AutoConfig.from_pretrained(path, **trust)
    taps = _taps(config, drafter, tap)
    options = {"tokenizer": tokenizer, "max_length": max_length, "log_norm": log_norm}
    options["keep_special_tokens"] = keep_special_tokens
    if estimate:
        from dspark_hf.data.cache import estimate_target_cache

        console.print(_estimate_table(estimate_target_cache(config, rows, num_taps=len(taps), **options)))
        return
    options["strict"] = strict
    built = _build(path, trust, target_dtype, rows, out, taps, dtype, shard_mb * 2**20, batch_tokens, options)
    if built is None:
        return
    console.print(plain(_summary(built)))
    if push_to_hub is not None:
        console.print(plain(f"Uploaded: {built.push_to_hub(push_to_hub, private=private or None).commit_url}"))


def _build(path: str, trust: dict[str, Any], target_dtype: str, rows: list, out: Path, taps: list[int], dtype: str,
           shard_bytes: int, batch_tokens: int, options: dict[str, Any]) -> Any:  # fmt: skip
    """The cache, in the first process; `None` in the others."""
    from transformers import AutoModelForCausalLM

    from dspark_hf.data.cache import build_target_cache
    from dspark_hf.data.cache.processes import process_state

    state = process_state()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=target_dtype, **trust).to(state.device).eval()
    built = build_target_cache(
        model,
        rows,
        out,
        target_layer_ids=taps,
        dtype=dtype,
        shard_bytes=shard_bytes,
        batch_tokens=batch_tokens,
        **options,
    )
    return built if state.is_main_process else None


def _taps(config: Any, drafter: str | None, taps: list[int] | None) -> list[int]:
    """The taps that the options name; five spread evenly, if none."""
    if drafter is None:
        from dspark_hf.modeling import DSparkConfig

        return sorted(taps) if taps else DSparkConfig.from_target(config).target_layer_ids
    from dspark_hf.hub.embedded import resolve_drafter
    from dspark_hf.hub.load import AutoDrafter

    return AutoDrafter.from_pretrained(resolve_drafter(drafter)).config.target_layer_ids


def _estimate_table(estimate: Any) -> Table:
    about = "" if estimate.num_sampled == estimate.num_rows else f" (counted in {estimate.num_sampled} of them)"
    table = Table(title=f"{estimate.num_rows} rows{about}, {estimate.num_tokens} tokens")
    for column in ("dtype", "bytes per token", "size", "smaller than bf16"):
        table.add_column(column, justify="left" if column == "dtype" else "right")
    for dtype, num_bytes in estimate.bytes_per_token.items():
        ratio = estimate.bytes_per_token["bf16"] / num_bytes
        table.add_row(dtype, f"{num_bytes:.0f}", _size(estimate.num_bytes(dtype)), f"{ratio:.2f}x")
    return table


def _summary(built: Any) -> str:
    return (
        f"{built.folder}: {len(built)} rows, {built.num_tokens} tokens, {built.manifest.dtype}, "
        f"{built.bytes_per_token:.0f} bytes per token, {_size(round(built.bytes_per_token * built.num_tokens))}"
    )


def _size(num_bytes: int) -> str:
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB")):
        if num_bytes >= 1000**power:
            return f"{num_bytes / 1000**power:.2f} {unit}"
    return f"{num_bytes / 1000:.1f} kB"
