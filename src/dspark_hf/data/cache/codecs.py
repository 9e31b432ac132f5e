"""Hidden states as bytes and back: as they are, as fp8 with a scale per token, or as 8- or 4-bit codes in groups.

Shapes: N tokens, W width (channels of all states side by side), E hidden size, S states (W = S * E), M groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dspark_hf.messages import shown

RAW_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPES = (*RAW_DTYPES, "fp8", "int8", "int4")

# Where a group's states cost 4 bits, the target's distribution is worth 6: noise there is noise in what is learned.
FEATURE_BITS = {"int8": 8, "int4": 4}
LAST_BITS = {"int8": 8, "int4": 6}
_GROUP = 64
_FP8_MAX = 448.0
# A group's step is 2 ** (eighths of an octave), one byte: from 2 ** -16 to nearly 2 ** 16.
_OCTAVE, _MIDDLE = 8, 128


def check_dtype(dtype: str) -> None:
    """Check that a cache can be of a `dtype`, by its name.

    Raises:
        `ValueError`: If not; the message names those that there are.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {shown(dtype)}.")


class Codec(Protocol):
    """Turns states `(tokens, width)` into named tensors `(tokens, ...)` and back."""

    @property
    def bytes_per_token(self) -> float:
        """What a token takes on the disk."""

    def encode(self, states: Tensor) -> dict[str, Tensor]:
        """The parts that are stored, by name, of `states` `(tokens, width)` of any floating dtype."""

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The states `(tokens, width)` that were encoded, as near as the `parts` keep them."""


@dataclass(frozen=True)
class RawCodec(Codec):
    """States as they are, in one dtype.

    Args:
        width (`int`): Values of a token.
        dtype (`torch.dtype`): That of the stored states.
    """

    width: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> float:
        return self.width * self.dtype.itemsize

    def encode(self, states: Tensor) -> dict[str, Tensor]:
        return {"values": states.to(self.dtype)}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        return parts["values"]


@dataclass(frozen=True)
class Fp8Codec(Codec):
    """States as e4m3 with a float32 scale per token and state: a tap's size does not cost another's precision.

    Args:
        width (`int`): Values of a token, those of all taps.
        hidden_size (`int`): Values of one state.
    """

    width: int
    hidden_size: int

    @property
    def bytes_per_token(self) -> float:
        return self.width + 4 * self.width // self.hidden_size

    def encode(self, states: Tensor) -> dict[str, Tensor]:
        states = states.float().unflatten(-1, (-1, self.hidden_size))  # [N, S, E]
        scale = (states.abs().amax(-1, keepdim=True) / _FP8_MAX).clamp_min(torch.finfo(torch.float32).tiny)
        return {"values": (states / scale).to(torch.float8_e4m3fn).flatten(-2), "scale": scale.squeeze(-1)}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        values = parts["values"].float().unflatten(-1, (-1, self.hidden_size))
        return (values * parts["scale"].unsqueeze(-1)).flatten(-2).bfloat16()


@dataclass(frozen=True)
class GroupCodec(Codec):
    """States as codes of 4, 6 or 8 bits in groups of 64 channels, a step of one byte per group.

    Channels are first brought to one size with the fixed `center` and `scale` of each, because a few of them are tens
    of times as large as the others and would leave their group no precision.

    Args:
        bits (`int`): 4, 6 or 8.
        center, scale (`torch.FloatTensor` of shape `(width,)`): From [`channel_statistics`].
    """

    bits: int
    center: Tensor
    scale: Tensor

    @property
    def num_groups(self) -> int:
        """Groups of channels, the last of which may not be full."""
        return -(-len(self.center) // _GROUP)

    @property
    def bytes_per_token(self) -> float:
        return self.num_groups * (_GROUP * self.bits // 8 + 1)

    def encode(self, states: Tensor) -> dict[str, Tensor]:
        # In place from here on: a batch's states are large, and fresh memory costs more than the arithmetic.
        values = (states.float() - self.center.to(states.device)).div_(self.scale.to(states.device))
        num_missing = self.num_groups * _GROUP - len(self.center)
        values = F.pad(values, (0, num_missing)) if num_missing else values
        values = values.unflatten(-1, (-1, _GROUP))  # [N, M, group]
        largest = 2 ** (self.bits - 1) - 1
        octaves = torch.ceil(_OCTAVE * torch.log2(values.abs().amax(-1) / largest))
        steps = octaves.clamp(-_MIDDLE, _MIDDLE - 1)  # [N, M]
        codes = values.div_(torch.exp2(steps / _OCTAVE).unsqueeze(-1)).round_().clamp_(-largest, largest)
        codes = codes.add_(largest).to(torch.uint8).flatten(-2)
        return {"codes": pack(codes, self.bits), "steps": (steps + _MIDDLE).to(torch.uint8)}

    def decode(self, parts: Mapping[str, Tensor]) -> Tensor:
        steps = torch.exp2((parts["steps"].float() - _MIDDLE) / _OCTAVE).unsqueeze(-1)
        codes = unpack(parts["codes"], self.bits).unflatten(-1, (-1, _GROUP))
        largest = 2 ** (self.bits - 1) - 1
        values = codes.float().sub_(largest).mul_(steps).flatten(-2)[..., : len(self.center)]
        return values.mul_(self.scale).add_(self.center).bfloat16()


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of few bits to bytes: the low 4 bits two a byte, then the next 2 bits four a byte.

    Args:
        codes (`torch.ByteTensor` of shape `(tokens, width)`): Codes below `2 ** bits`.
        bits (`int`): 4, 6 or 8.

    Returns:
        `torch.ByteTensor` of shape `(tokens, width * bits / 8)`.
    """
    if bits == 8:
        return codes
    planes = [_pack_plane(codes & 15, 4)]
    if bits == 6:
        planes.append(_pack_plane(codes >> 4, 2))
    return torch.cat(planes, -1)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of [`pack`]: codes `(tokens, width)` of `bits` bits from `packed` `(tokens, width * bits / 8)`."""
    if bits == 8:
        return packed
    if bits == 4:
        return _unpack_plane(packed, 4)
    num_low = packed.shape[-1] * 2 // 3
    return _unpack_plane(packed[..., :num_low], 4) | (_unpack_plane(packed[..., num_low:], 2) << 4)


def _pack_plane(codes: Tensor, width: int) -> Tensor:
    columns = codes.unflatten(-1, (-1, 8 // width)).unbind(-1)
    packed = columns[0].clone()
    for place, column in enumerate(columns[1:], start=1):
        packed |= column << (place * width)
    return packed


def _unpack_plane(packed: Tensor, width: int) -> Tensor:
    columns = [(packed >> shift) & (2**width - 1) for shift in range(0, 8, width)]
    return torch.stack(columns, -1).flatten(-2)


def channel_statistics(states: Tensor) -> tuple[Tensor, Tensor]:
    """Center and scale of each channel, float32 `(width,)`: the median, and the root mean square distance from it.

    Args:
        states (`torch.Tensor` of shape `(tokens, width)`): A sample, of whole sequences: a sequence's first token may
            have channels that are hundreds of times as large as everywhere else, and these must count. Otherwise they
            would take all precision from the others of their group.
    """
    states = states.float()
    center = states.median(0).values
    scale = (states - center).square().mean(0).sqrt()
    # A channel that hardly varies must not be blown up to the size of the others.
    floor = 0.01 * float(scale.median())
    return center, scale.clamp_min(max(floor, 1e-6))
