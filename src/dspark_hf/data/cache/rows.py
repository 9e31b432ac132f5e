"""What a cache holds of a row: ids and mask, features at the taps, last hidden states, and `log_norm` if asked for.

Shapes: N tokens, L taps, E hidden size.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dspark_hf.data.features import TargetFeatures, learned_positions
from dspark_hf.files import open_regular, whole_file
from dspark_hf.ops.finite import is_finite

from .codecs import (
    FEATURE_BITS,
    LAST_BITS,
    RAW_DTYPES,
    Codec,
    Fp8Codec,
    GroupCodec,
    RawCodec,
    channel_statistics,
    check_dtype,
)

STATES = ("features", "last_hidden_states")
CHANNELS_FILE = "channels.safetensors"
_SAMPLE_TOKENS = 8192


class RowCodec:
    """Turns a batch of states into the tensors of a shard, and those of a row into what a drafter trains on.

    Args:
        dtype (`str`): One of `fp32`, `fp16`, `bf16`, `fp8`, `int8`, `int4`.
        num_taps (`int`): Taps.
        hidden_size (`int`): Hidden size of the target.
        log_norm (`bool`): Whether rows have `log_norm`.
        channels (`dict[str, torch.Tensor]`, *optional*): From [`all_channel_statistics`]; `int8` and `int4` need them
            to encode, not to tell their size.

    Raises:
        `ValueError`: If there is no such dtype, or the statistics are not those of these sizes.
    """

    def __init__(
        self,
        dtype: str,
        num_taps: int,
        hidden_size: int,
        log_norm: bool,
        channels: Mapping[str, Tensor] | None = None,
    ):
        check_dtype(dtype)
        self.log_norm = log_norm
        self.codecs: dict[str, Codec] = {}
        self.widths = widths = {"features": num_taps * hidden_size, "last_hidden_states": hidden_size}
        for name, bits in zip(STATES, (FEATURE_BITS, LAST_BITS), strict=True):
            if dtype in RAW_DTYPES:
                self.codecs[name] = RawCodec(widths[name], RAW_DTYPES[dtype])
            elif dtype == "fp8":
                self.codecs[name] = Fp8Codec(widths[name], hidden_size)
            else:
                blank = torch.empty(widths[name], device="meta")
                parts = [blank if channels is None else channels.get(f"{name}.{part}") for part in ("center", "scale")]
                if channels is not None and not all(_is_statistic(part, blank) for part in parts):
                    raise ValueError(
                        f"{CHANNELS_FILE} must hold center and scale of {widths[name]} channels of {name}, all "
                        "finite. Fetch it again, or build the cache in another folder."
                    )
                self.codecs[name] = GroupCodec(bits[dtype], *parts)

    @property
    def bytes_per_token(self) -> float:
        """Of a row's states, ids (4), mask (1) and `log_norm` (4)."""
        return sum(codec.bytes_per_token for codec in self.codecs.values()) + 5 + 4 * self.log_norm

    def encode(self, source: TargetFeatures, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """Run the target on rows, as one batch, and encode what it says.

        Args:
            source ([`~data.features.TargetFeatures`]): The target.
            rows (`Sequence[Mapping]`): Rows of `input_ids` and `loss_mask`.

        Returns:
            `list[dict[str, torch.Tensor]]`: What is stored of each row, by name.

        Raises:
            `ValueError`: If a state is not finite.
        """
        ids = [torch.as_tensor(row["input_ids"], dtype=torch.int64) for row in rows]
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        states = source(pad_sequence(ids, batch_first=True), mask)
        return self.encode_states(source, states, mask, ids, [row["loss_mask"] for row in rows])

    def encode_states(
        self,
        source: TargetFeatures,
        states: tuple[Tensor, Tensor],
        mask: Tensor,
        ids: Sequence[Tensor],
        loss_masks: Sequence[Any],
    ) -> list[dict[str, Tensor]]:
        """Encode what [`~data.features.TargetFeatures`] gave for a padded batch, one row at a time.

        Args:
            source ([`~data.features.TargetFeatures`]): The target.
            states (`tuple[torch.Tensor, torch.Tensor]`): Features `(batch, sequence, taps * hidden)` and last hidden
                states
                `(batch, sequence, hidden)`.
            mask (`torch.LongTensor` of shape `(batch, sequence)`): 1 where a token is.
            ids (`Sequence[torch.Tensor]` of shape `(tokens,)` each): Each row's tokens.
            loss_masks (`Sequence`): Each row's supervised tokens, bool of shape `(tokens,)`.

        Returns:
            `list[dict[str, torch.Tensor]]`: What is stored of each row, by name.

        Raises:
            `ValueError`: If a state is not finite, before or after encoding.
        """
        keep = mask.bool().to(states[0].device)
        states = [state[keep] for state in states]  # [N, L * E], [N, E]: every row's tokens, end to end
        if not all(bool(torch.isfinite(state).all()) for state in states):
            raise ValueError(
                f"The target's hidden states are not finite in one of these rows: {[row[:8].tolist() for row in ids]} "
                "(first tokens). Run the target in bfloat16 or float32."
            )
        encoded: dict[str, Tensor] = {}
        for (name, codec), state in zip(self.codecs.items(), states, strict=True):
            parts = codec.encode(state)
            if not all(is_finite(part) for part in parts.values()):
                raise ValueError(
                    f"The target's hidden states reach {float(state.abs().max()):.3g}, more than the cache's dtype "
                    "holds. Store them in bf16, or in fewer bits."
                )
            encoded |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        if self.log_norm:
            # Of the states that will be read, so that probabilities over part of the vocabulary stay below 1.
            last = self.codecs[STATES[1]].decode(_parts(encoded, STATES[1])).to(states[1].dtype)
            encoded["log_norm"] = source.log_norm(last, torch.cat([learned_positions(mask) for mask in loss_masks]))
        lengths = [len(row) for row in ids]
        split = {name: tensor.cpu().split(lengths) for name, tensor in encoded.items()}
        return [
            {
                "input_ids": ids[row].to(torch.int32),
                "loss_mask": torch.as_tensor(loss_masks[row]).bool(),
                **{name: tensors[row] for name, tensors in split.items()},
            }
            for row in range(len(ids))
        ]

    def decode(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A row for the collator: ids, mask, `features`, `last_hidden_states` and, if held, `log_norm`.

        Args:
            encoded (`Mapping[str, torch.Tensor]`): What is stored of it.

        Raises:
            `ValueError`: If tensors are missing, are of another dtype or shape, or a state is not finite.
        """
        try:
            row = {"input_ids": encoded["input_ids"].to(torch.int64), "loss_mask": encoded["loss_mask"]}
            row |= {name: codec.decode(_parts(encoded, name)) for name, codec in self.codecs.items()}
            row |= {"log_norm": encoded["log_norm"]} if self.log_norm else {}
        except (KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"its tensors {sorted(encoded)} cannot be decoded ({error})") from error
        if encoded["input_ids"].dtype != torch.int32 or row["loss_mask"].dtype != torch.bool:
            dtypes = {name: encoded[name].dtype for name in ("input_ids", "loss_mask")}
            raise ValueError(f"input_ids must be int32 and loss_mask bool, got {dtypes}")
        for name, tensor in row.items():
            shape = (len(row["input_ids"]), *([self.widths[name]] if name in self.widths else []))
            if tensor.shape != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)} instead of {shape}")
            if not is_finite(tensor):
                raise ValueError(f"{name} has values that are not finite")
        return row


def check_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Check that all of `input_ids` `(tokens,)` are of a vocabulary of `vocab_size` tokens.

    Raises:
        `ValueError`: If not; the message gives the smallest and the largest.
    """
    if len(input_ids) and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < vocab_size:
        first, last = int(input_ids.min()), int(input_ids.max())
        raise ValueError(f"input_ids run from {first} to {last}, but the target has {vocab_size} tokens")


def _is_statistic(part: Tensor | None, blank: Tensor) -> bool:
    return part is not None and part.shape == blank.shape and part.dtype == torch.float32 and is_finite(part)


def needs_channels(dtype: str) -> bool:
    """Whether a cache of this `dtype` rests on statistics of its channels."""
    return dtype in FEATURE_BITS


def sample_channels(source: TargetFeatures, rows: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Center and scale of every channel, by what the `source` says of the first 8,192 tokens or so of `rows`.

    Raises:
        `ValueError`: If there is no row.
    """
    states: dict[str, list[Tensor]] = {name: [] for name in STATES}
    num_tokens = 0
    for row in rows:
        both = source(torch.as_tensor(row["input_ids"], dtype=torch.int64).unsqueeze(0))
        for name, state in zip(STATES, both, strict=True):
            states[name].append(state[0].float().cpu())
        num_tokens += len(row["input_ids"])
        if num_tokens >= _SAMPLE_TOKENS:
            break
    if not num_tokens:
        raise ValueError("No row has a token that the target wrote, so there is nothing to cache. Check loss_mask.")
    return all_channel_statistics(torch.cat(parts) for parts in states.values())


def all_channel_statistics(states: Iterable[Tensor]) -> dict[str, Tensor]:
    """Center and scale of every channel, by name, of `states`: features and last hidden ones, `(tokens, width)`."""
    channels = {}
    for name, state in zip(STATES, states, strict=True):
        channels[f"{name}.center"], channels[f"{name}.scale"] = channel_statistics(state)
    return channels


def write_channels(folder: Path, channels: Mapping[str, Tensor]) -> None:
    """Write statistics of `channels`, by name, to a `folder`, and wait until the disk has them."""
    with whole_file(folder / CHANNELS_FILE, durable=True) as temp:
        save_file(dict(channels), temp)


def read_channels(folder: Path) -> dict[str, Tensor]:
    """Read what [`write_channels`] wrote to a `folder`.

    Raises:
        `ValueError`: If the file cannot be read.
    """
    try:
        open_regular(folder / CHANNELS_FILE).close()
        return load_file(folder / CHANNELS_FILE)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"Cannot read {folder / CHANNELS_FILE}: {error}. Without it no row can be decoded: fetch it again, or "
            "build the cache in another folder."
        ) from error


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows of similar `lengths`, at most `batch_tokens` in a batch, padding included; a longer row goes
    alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // max(lengths[order[start]], 1))
        yield order[start : start + size]
        start += size


def _parts(encoded: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): tensor for key, tensor in encoded.items() if key.startswith(f"{name}.")}
