"""What a tapped layer's output means to a drafter.

Shapes: B batch, S sequence, M residual streams, E hidden size.
"""

from torch import Tensor


def merge_streams(tap: Tensor) -> Tensor:
    """The states `(batch, sequence, hidden)` of a tapped layer.

    Layers with several residual streams (DeepSeek-V4's hyper-connections) put out `[B, S, M, E]`, of which a drafter
    reads the mean. The paper does not say how such layers are tapped.
    """
    return tap.mean(2) if tap.dim() == 4 else tap
