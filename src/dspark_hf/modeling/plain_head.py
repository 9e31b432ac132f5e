"""A target's output head as a plain matrix, for what does not go through the module: training, some of its rows."""

import torch
from torch import Tensor, nn

_PLAIN_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def is_quantised(weight: Tensor) -> bool:
    """Whether the numbers that a `weight` of any shape holds are not those it multiplies with."""
    return _unpacks_itself(weight) or weight.dtype not in _PLAIN_DTYPES


def plain_weight(head: nn.Module) -> Tensor:
    """The matrix `(vocab, hidden)` of an output `head` in floating point, detached; a copy only of a quantised one.

    Raises:
        `ValueError`: If the head holds its matrix in a form that it alone can read.
    """
    weight = getattr(head, "weight", None)
    if weight is not None and _unpacks_itself(weight):
        return weight.detach().dequantize()
    if weight is None or is_quantised(weight):
        held = "no weight" if weight is None else f"a weight of {weight.dtype}"
        raise ValueError(
            f"The target's output head ({type(head).__name__}) holds {held}, which cannot be read as a matrix, and "
            "training and reduced draft vocabularies need one. Load the target with its output head left out of the "
            "quantisation, e.g. modules_to_not_convert=['lm_head']."
        )
    return weight.detach()


def plain_rows(head: nn.Module, rows: Tensor | slice) -> tuple[Tensor, Tensor | None]:
    """Rows of an output head `(rows, hidden)` and of its bias `(rows,)`, if it has one; copies, or views of a slice.

    Raises:
        `ValueError`: As of [`plain_weight`].
    """
    weight, bias = plain_weight(head), getattr(head, "bias", None)
    rows = rows.to(weight.device) if isinstance(rows, Tensor) else rows
    return weight[rows], None if bias is None else bias.detach()[rows]


def _unpacks_itself(weight: Tensor) -> bool:
    # As the tensor classes of torchao do.
    return type(weight).dequantize is not Tensor.dequantize
