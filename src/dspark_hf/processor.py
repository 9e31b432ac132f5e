"""What a processor has instructions for, as torch tells it."""

import torch

# What tells that a CPU multiplies in a dtype of two bytes, as `torch.cpu.get_capabilities` names it.
_NATIVE = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def multiplies(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device has instructions for products of a dtype; else it computes in float32 and converts.

    Args:
        device (`torch.device`): Where is computed.
        dtype (`torch.dtype`): What is computed in.

    Returns:
        `bool`: `True` for dtypes of four bytes and more, and where torch cannot tell, as of a GPU.
    """
    if device.type != "cpu" or dtype not in _NATIVE or not hasattr(torch.cpu, "get_capabilities"):
        return True
    can = torch.cpu.get_capabilities()
    known = [can[name] for name in _NATIVE[dtype] if name in can]
    return any(known) or not known


def is_narrow() -> bool:
    """Whether the processor is known to have no vectors of 512 bits."""
    return hasattr(torch.cpu, "get_capabilities") and torch.cpu.get_capabilities().get("avx512_f") is False
