"""The kernels of passes behind the prompt."""

from contextlib import AbstractContextManager, nullcontext

from transformers import PreTrainedModel


def decode_kernels(model: PreTrainedModel) -> AbstractContextManager:
    """What transformers puts around a `model`'s passes behind the prompt: on a GPU, another kernel for experts.

    Verification by the kernels of plain decoding gives the tokens of plain decoding.
    """
    # Private, and the only way to the same choice as plain decoding's.
    return getattr(model, "_optimize_model_for_decode", nullcontext)()
