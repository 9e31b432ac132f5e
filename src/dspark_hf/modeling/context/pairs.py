"""Contexts of an EAGLE-3 drafter: pairs of a token and the feature before it.

Column t holds the feature of token t, and the pair that ends with token t. The first token ends no pair, so nothing
sees column 0.
Shapes: B batch, T tokens, E hidden size.
"""

import torch
from torch import Tensor

from dspark_hf.ops.blocks import FULL_VIEW, LayerView

from .fixed import FixedState
from .growing import DraftState


class Eagle3State(DraftState):
    """Context of one generation.

    Args:
        batch_size (`int`): Number of rows.
    """

    def __init__(self, batch_size: int):
        super().__init__(batch_size, num_layers=1)
        self._features: list[Tensor | None] = [None]

    def append(self, features: Tensor) -> Tensor:
        """Write `features` `(batch, tokens, hidden)` behind each row's context.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, hidden)`: The feature before each token.
        """
        buffer = self._write(self._features, features.unsqueeze(1), 0)[:, 0]
        return torch.cat([self._last(buffer), features[:, :-1]], 1)

    def next(self) -> "Eagle3State":
        """The same, with the latest token counted."""
        self.advance([1] * len(self.context_lens))
        return self

    def back(self, num_tokens: int) -> None:
        """Take the latest `num_tokens` tokens of each row out again."""
        self.crop([length - num_tokens for length in self.context_lens])

    def last_features(self) -> Tensor:
        """Features `(batch, 1, hidden)` of the rows' last tokens, whose pairs end with the anchors."""
        return self._last(self._features[0][: len(self.context_lens), 0])

    def _last(self, buffer: Tensor) -> Tensor:
        return _feature_before(buffer, torch.tensor(self.context_lens, device=buffer.device))

    def _buffers(self) -> tuple[list[Tensor | None], ...]:
        return *super()._buffers(), self._features

    @classmethod
    def fixed(cls, buffers: list[Tensor], first_positions: Tensor) -> "FixedPairs":
        return FixedPairs(*buffers, first_positions)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = super().update(keys, values, layer_idx)
        return keys[:, :, 1:], values[:, :, 1:]

    def block_mask(self, num_tokens: int, device: torch.device, view: LayerView = FULL_VIEW) -> Tensor | None:
        mask = super().block_mask(num_tokens, device, view)
        return None if mask is None else mask[..., 1:]


class FixedPairs(FixedState):
    """A context in buffers that stay where they are.

    Args:
        keys, values (`torch.Tensor` of shape `(rows, heads, columns, dim)`): The layer's buffers.
        features (`torch.Tensor` of shape `(rows, 1, columns, hidden)`): The buffer of features.
        first_positions, lens: As of [`FixedState`].
    """

    def __init__(
        self, keys: Tensor, values: Tensor, features: Tensor, first_positions: Tensor, lens: Tensor | None = None
    ):
        super().__init__([(keys, values)], first_positions, lens)
        self._features = features

    def at(self, lens: Tensor) -> "FixedPairs":
        return FixedPairs(*self.key_values[0], self._features, self.first_positions, lens)

    def next(self) -> "FixedPairs":
        """The same, with one token more."""
        return self.at(self.lens + 1)

    def back(self, num_tokens: int) -> None:
        """Nothing to do: `next` left this one as it was.

        Args:
            num_tokens (`int`): As of [`Eagle3State.back`].
        """

    def append(self, features: Tensor) -> Tensor:
        """As of [`Eagle3State.append`].

        Args:
            features (`torch.Tensor` of shape `(rows, tokens, hidden)`): As there.
        """
        rows = torch.arange(features.shape[0], device=features.device).unsqueeze(1)
        columns = self.lens.unsqueeze(1) + torch.arange(features.shape[1], device=features.device)
        self._features[rows, 0, columns] = features.to(self._features.dtype)
        return torch.cat([self.last_features(), features[:, :-1]], 1)

    def last_features(self) -> Tensor:
        """As of [`Eagle3State.last_features`]."""
        return _feature_before(self._features[:, 0], self.lens)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = super().update(keys, values, layer_idx)
        return keys[:, :, 1:], values[:, :, 1:]

    def block_mask(self, num_tokens: int, device: torch.device, view: LayerView = FULL_VIEW) -> Tensor:
        return super().block_mask(num_tokens, device, view)[..., 1:]


def _feature_before(features: Tensor, lens: Tensor) -> Tensor:
    """Features `(batch, 1, hidden)` of the last of each row's `lens` tokens, of all `(batch, columns, hidden)`."""
    columns = lens.clamp_min(1) - 1
    return features.gather(1, columns[:, None, None].expand(-1, 1, features.shape[-1]))
