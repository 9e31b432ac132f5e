"""What an H100 cannot beat: bytes of its memory and bfloat16 operations a second."""

BANDWIDTH, ARITHMETIC = 3.0e12, 790e12


def least_us(num_bytes: float, num_flops: float = 0.0) -> float:
    """Microseconds that so many bytes or operations take at least, whichever takes longer."""
    return max(num_bytes / BANDWIDTH, num_flops / ARITHMETIC) * 1e6
