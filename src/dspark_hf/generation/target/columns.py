"""What the target is given for each column of its cache, besides tokens: mask, positions, token types.

Plain `generate()` appends to these token by token. A round has several tokens, so here they are laid out ahead.
Shapes: B batch, C cache columns, w tokens of one forward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from .layout import PromptLayout


class ColumnInputs:
    """Inputs of a generation that grow with its tokens.

    Args:
        model_kwargs (`dict`): What `generate()` prepared for the forward passes. What belongs to columns is taken out.
        layout ([`PromptLayout`]): Where the prompt stands.
        max_length (`int`): Most token ids of a row, those of the prompt included.

    Attributes:
        mask (`torch.Tensor` of shape `(batch, columns)`, *optional*): Attention mask; None where no column is padding.
        others (`dict[str, torch.Tensor]`): The other inputs, `(..., batch, columns)` each.
        most_columns (`int`): Columns that can be asked for, however far away that is.
    """

    def __init__(self, model_kwargs: dict[str, Any], layout: PromptLayout, max_length: int):
        self._layout = layout
        self.most_columns = layout.num_columns + max_length - layout.num_ids
        self._num_laid_out = layout.num_columns
        self.mask: Tensor | None = model_kwargs.pop("attention_mask", None)
        self.others = {
            name: self._of_rows(model_kwargs.pop(name))
            for name in ("position_ids", "token_type_ids", "mm_token_type_ids")
            if model_kwargs.get(name) is not None
        }

    def _of_rows(self, values: Tensor) -> Tensor:
        # Of cached columns nothing is read, and they may be missing.
        num_missing = self._layout.num_columns - values.shape[-1]
        values = pad(values, (num_missing, 0))
        return values.expand(*values.shape[:-2], self._layout.num_rows, -1)

    @property
    def position_ids(self) -> Tensor | None:
        """Positions, `(batch, columns)` or with several axes `(axes, batch, columns)`, if the target takes them."""
        return self.others.get("position_ids")

    @property
    def last_position(self) -> int | None:
        """The highest position that can be asked for, if the target takes positions."""
        positions = self.position_ids
        num_new = self.most_columns - self._layout.num_columns
        return None if positions is None else int(positions[..., : self._layout.num_columns].max()) + num_new

    def reach(self, num_columns: int) -> None:
        """Lay out columns up to `num_columns` and further, as plain `generate()` appends them token by token."""
        num_columns = min(num_columns, self.most_columns)
        if num_columns <= self._num_laid_out:
            return
        num_new = min(2 * num_columns, self.most_columns) - self._num_laid_out
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(self.mask.shape[0], num_new)], 1)
        self.others = {name: _append(name, values, num_new) for name, values in self.others.items()}
        self._num_laid_out += num_new
        positions = self.position_ids
        if positions is not None and self._num_laid_out == self.most_columns:
            # The last token is never processed, so a table of positions may end before it. What stands in its column
            # are drafts that a row has no room for.
            positions[..., -1] = positions[..., -2]

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these `rows` only, numbers from 0."""
        self.mask = None if self.mask is None else self.mask[rows]
        self.others = {name: values[..., rows, :] for name, values in self.others.items()}

    def of_prompt(self, begin: int, stop: int) -> dict[str, Tensor]:
        """Inputs of a pass over the prompt's columns `begin` to `stop`, as targets expect those of a first pass."""
        kwargs = {name: values[..., :stop] for name, values in self.others.items()}
        if "position_ids" in kwargs:
            kwargs["position_ids"] = kwargs["position_ids"][..., begin:]
        return kwargs if self.mask is None else {"attention_mask": self.mask[:, :stop], **kwargs}

    def of_block(self, num_columns: int, num_inputs: int) -> dict[str, Tensor]:
        """Inputs of a pass over the last `num_inputs` of `num_columns` columns."""
        self.reach(num_columns)
        kwargs = {name: values[..., num_columns - num_inputs : num_columns] for name, values in self.others.items()}
        return kwargs if self.mask is None else {"attention_mask": self.mask[:, :num_columns], **kwargs}

    def of_shifted_block(self, places: Tensor, num_inputs: int) -> dict[str, Tensor]:
        """Inputs of a pass over rows that are moved to the right.

        Args:
            places (`torch.LongTensor` of shape `(batch, columns)`): Where what stands in a column belongs in its row;
                negative left of the row's first token.
            num_inputs (`int`): Tokens of the pass, the last columns.
        """
        self.reach(places.shape[1])
        mask = (places >= 0).long()
        # Drafts that a row has no room for are given the last place: they are never taken.
        places = places.clamp(0, self._num_laid_out - 1)
        if self.mask is not None:
            mask = self.mask.gather(1, places.to(self.mask.device)) * mask.to(self.mask)
        kwargs = {name: _gather(values, places[:, -num_inputs:]) for name, values in self.others.items()}
        return {"attention_mask": mask, **kwargs}


def reads_columns(model: PreTrainedModel) -> bool:
    """Whether attention of a target `model` is cut into chunks of columns."""
    return getattr(model.config.get_text_config(decoder=True), "attention_chunk_size", None) is not None


def _append(name: str, values: Tensor, num_new: int) -> Tensor:
    """`(..., columns)` with `num_new` columns more."""
    last = values[..., -1:]
    if name == "position_ids":
        return torch.cat([values, last + torch.arange(1, num_new + 1, device=last.device)], -1)
    if name == "token_type_ids":
        return torch.cat([values, last.expand(*last.shape[:-1], num_new)], -1)
    return pad(values, (0, num_new))


def _gather(values: Tensor, places: Tensor) -> Tensor:
    """`(..., batch, columns)` at `(batch, tokens)` columns."""
    places = places.to(values.device)
    return values.gather(-1, places.expand(*values.shape[:-2], *places.shape))
