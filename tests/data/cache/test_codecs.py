"""Codecs: what comes back is close, what is stored is small, and packing loses nothing."""

import pytest
import torch

from dspark_hf.data.cache.codecs import DTYPES, Fp8Codec, GroupCodec, RawCodec, channel_statistics, pack, unpack

WIDTH, HIDDEN = 192, 96


@pytest.fixture
def states():
    """Normal channels of very different size, some with an offset; every fiftieth token has two huge channels."""
    sizes = torch.logspace(-2, 2, WIDTH)
    states = torch.randn(600, WIDTH) * sizes + 3 * sizes * (torch.arange(WIDTH) % 3 == 0)
    states[::50, :2] = 1000.0
    return states


def relative_error(codec, states):
    """Per channel: root mean square error over standard deviation."""
    error = codec.decode(codec.encode(states)).float() - states
    return error.square().mean(0).sqrt() / states.std(0)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_packing_is_lossless(bits):
    codes = torch.randint(0, 2**bits, (5, 3, 64), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (5, 3, 64 * bits // 8)
    assert torch.equal(unpack(packed, bits), codes)


@pytest.mark.parametrize(("bits", "limit"), [(4, 0.14), (6, 0.035), (8, 0.01)])
def test_group_codes_keep_every_channel(states, bits, limit):
    codec = GroupCodec(bits, *channel_statistics(states))
    assert relative_error(codec, states).max() < limit


def test_without_statistics_small_channels_would_be_lost(states):
    plain = GroupCodec(4, torch.zeros(WIDTH), torch.ones(WIDTH))
    assert relative_error(plain, states).max() > 0.5


def test_fp8_error_is_that_of_its_mantissa(states):
    # Three bits: half of 2 ** -3 of the largest value in the worst place, far less on average.
    assert relative_error(Fp8Codec(WIDTH, HIDDEN), states - states.mean(0))[2:].max() < 0.04


def test_fp8_scale_is_that_of_the_state():
    states = torch.cat([torch.randn(4, HIDDEN), 1e6 * torch.randn(4, HIDDEN)], -1)
    decoded = Fp8Codec(2 * HIDDEN, HIDDEN).decode(Fp8Codec(2 * HIDDEN, HIDDEN).encode(states)).float()
    assert ((decoded - states).abs() <= 0.07 * states.abs() + 1e-3).all()


def test_zeros_and_constant_channels_come_back():
    states = torch.randn(100, WIDTH)
    states[:, 5] = 7.0
    states[3] = 0.0
    codec = GroupCodec(4, *channel_statistics(states))
    decoded = codec.decode(codec.encode(states)).float()
    assert torch.isfinite(decoded).all()
    assert (decoded[torch.arange(100) != 3, 5] - 7).abs().max() < 0.1
    assert Fp8Codec(WIDTH, HIDDEN).decode(Fp8Codec(WIDTH, HIDDEN).encode(torch.zeros(2, WIDTH))).eq(0).all()


@pytest.mark.parametrize("width", [32, 64, 100])
def test_width_need_not_be_whole_groups(width):
    states = torch.randn(200, width)
    codec = GroupCodec(8, *channel_statistics(states))
    assert relative_error(codec, states).max() < 0.02


def test_bytes_per_token_are_those_of_the_tensors(states):
    for codec in (
        RawCodec(WIDTH, torch.bfloat16),
        Fp8Codec(WIDTH, HIDDEN),
        *(GroupCodec(bits, *channel_statistics(states)) for bits in (4, 6, 8)),
    ):
        stored = sum(part.numel() * part.itemsize for part in codec.encode(states).values())
        assert stored == codec.bytes_per_token * len(states)


def test_raw_states_come_back_bit_for_bit(states):
    assert torch.equal(RawCodec(WIDTH, torch.float32).decode(RawCodec(WIDTH, torch.float32).encode(states)), states)


def test_dtypes():
    assert DTYPES == ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
