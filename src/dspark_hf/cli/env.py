"""`dspark env`: what to put into a bug report."""

from rich.console import Console
from rich.table import Table

from dspark_hf.cli.terminal import plain


def env() -> None:
    """Print versions, device and threads, and which kernels run.

    DSPARK_HF_KERNELS=torch takes no kernel; DSPARK_HF_KERNELS=triton takes them or says why it cannot be.

    Example:

        dspark env
    """
    import torch

    from dspark_hf.evaluation.origin import machine, versions
    from dspark_hf.ops.dispatch import KERNELS, allows_packages, choose
    from dspark_hf.ops.row_attention.flash import flash_for
    from dspark_hf.processor import multiplies

    table = Table(show_header=False, box=None)
    for name, value in versions().items():
        table.add_row(name, value or "not installed")
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    for name, value in machine(device).items():
        table.add_row(name, plain(str(value)))
    for dtype in (torch.bfloat16, torch.float16):
        how = (
            "by instructions"
            if multiplies(device, dtype)
            else "in float32, converted: several tokens in a pass are slow"
        )
        table.add_row(f"products of {str(dtype).removeprefix('torch.')}", how)
    for name in KERNELS:
        choice = choose(name, device)
        table.add_row(f"kernel {name}", plain(f"{choice.runs}: {choice.why}"))
        if name == "row_attention" and choice.runs == "triton" and allows_packages():
            table.add_row("flash attention", plain(flash_for(device).why))
    Console().print(table)
