"""Numbers of counters inside kernels, and draws by inverse CDF with them."""

import triton
import triton.language as tl


@triton.jit
def uniform(key, row, place):
    """A number in [0, 1) for a row and a place below 65,536 in it."""
    # 53 bits, so that no token is too rare to be drawn.
    high, low, _, _ = tl.randint4x(key, row.to(tl.int64) * 65536 + place)
    bits = (high.to(tl.uint64) << 21) | (low.to(tl.uint64) >> 11)
    return bits.to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def draw_place(weights, places, number):
    """Place in proportion to weights, which are in ascending order of places, and what of `number` is left there."""
    sums = tl.cumsum(weights, 0)
    total = tl.max(sums, 0)
    place = tl.sum((sums <= number * total).to(tl.int32), 0)
    # Rounding may lift the threshold to the total.
    place = tl.minimum(place, tl.max(tl.where(weights > 0, places, 0), 0))
    before = tl.max(tl.where(places < place, sums, 0.0), 0)
    return place, number * total - before
