"""`dspark bench kernels`: kernels beside the torch operations that they replace."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from dspark_hf.cli.options import DeviceOption, JsonOption

_DIFFERS = 1


def kernels(
    kernel: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    device: DeviceOption = "auto",
    json: JsonOption = None,
) -> None:
    """Compare each kernel with its reference and, where they agree, time it beside torch on this machine's GPU.

    Nothing is timed for a kernel that differs, nor without a GPU: the interpreter (TRITON_INTERPRET=1) only shows
    whether kernels are right. Exit code 1 if one is not.

    Example:

        dspark bench kernels --kernel verify --json kernels.json
    """
    from dspark_hf.cli.models import check_device, check_output
    from dspark_hf.evaluation import provenance, write_json
    from dspark_hf.ops.dispatch import KERNELS, choose, has_triton, is_interpreted, spec_of
    from dspark_hf.ops.timing import measure

    check_output(json)
    names = list(KERNELS) if not kernel else kernel
    if unknown := [name for name in names if name not in KERNELS]:
        raise ValueError(f"--kernel must be one of {', '.join(KERNELS)}, got {unknown[0]!r}.")
    where = check_device(device)
    console = Console(highlight=False)
    if not has_triton():
        console.print(f"nothing is compared: {choose(names[0], where).why}")
        return
    if where.type != "cuda" and not is_interpreted():
        console.print(f"nothing is timed: {choose(names[0], where).why}")
        console.print("TRITON_INTERPRET=1 dspark bench kernels compares kernels with their references on a CPU.")
        return
    table, rows = (
        Table(Column("kernel", no_wrap=True), "case", "right", "torch, us", "kernel, us", "times as fast", "GB/s"),
        [],
    )
    for name in names:
        spec = spec_of(name)
        for case in spec.benched if where.type == "cuda" else spec.short:
            found = measure(spec, case, where)
            rows.append({"kernel": name, "case": case, **found._asdict()})
            seconds = [found.seconds[way] for way in ("torch", "triton")] if found.seconds else None
            cells = ["", "", "", ""] if seconds is None else [
                *(f"{second * 1e6:.1f}" for second in seconds), f"{seconds[0] / seconds[1]:.2f}",
                f"{found.num_bytes / seconds[1] / 1e9:.0f}",
            ]  # fmt: skip
            table.add_row(name, case, "yes" if found.differs is None else f"NO: {found.differs}", *cells)
    console.print(table)
    if where.type != "cuda":
        console.print("nothing is timed: the interpreter runs kernels line by line on the CPU")
    if json is not None:
        write_json(json, {"kernels": rows, "provenance": provenance(where)})
    if any(row["differs"] for row in rows):
        raise typer.Exit(_DIFFERS)
