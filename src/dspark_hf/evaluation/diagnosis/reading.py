"""Ways to read a drafter: as its config says, and otherwise."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dspark_hf.evaluation.diagnosis.adapters import has_adapter
from dspark_hf.modeling import DraftModel
from dspark_hf.modeling.configuration.taps import check_taps
from dspark_hf.modeling.families import get_family
from dspark_hf.modeling.wrappers import unwrap


@dataclass(frozen=True)
class Reading:
    """How a drafter is read; what is `None` is as its config, and the caller, have it.

    Args:
        taps (`tuple[int, ...]`, *optional*): Layers whose outputs it gets.
        from_anchor (`bool`, *optional*): `sample_from_anchor`.
        block_size (`int`, *optional*): Inputs of a block.
        rope (`tuple`, *optional*): Items of `rope_parameters` of the draft layers, lists as tuples.
        dtype (`torch.dtype`, *optional*): The drafter's.
        template (`bool`, *optional*): Whether prompts go through the chat template.
        target_adapter, drafter_adapter (`bool`, *optional*): `False` to switch it off.
        is_grave (`bool`): Whether drafts that were right otherwise would next to all be wrong as the config has it.
    """

    taps: tuple[int, ...] | None = None
    from_anchor: bool | None = None
    block_size: int | None = None
    rope: tuple[tuple[str, Any], ...] | None = None
    dtype: torch.dtype | None = None
    template: bool | None = None
    target_adapter: bool | None = None
    drafter_adapter: bool | None = None
    is_grave: bool = field(default=True, compare=False)

    @property
    def changes(self) -> set[str]:
        """What is read otherwise."""
        return {name for name, value in vars(self).items() if value is not None and name != "is_grave"}

    @property
    def texts(self) -> tuple[bool | None, bool | None]:
        """Which answers it drafts behind; blocks behind the same ones can be compared one by one."""
        return self.template, self.target_adapter

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """`rope` as a config has it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.rope or ()}

    def with_other(self, other: "Reading") -> "Reading":
        """The changes of this reading and of the `other` at once."""
        return replace(self, **{name: getattr(other, name) for name in other.changes})

    def without(self, name: str) -> "Reading":
        """This reading with `name` as the config has it."""
        return replace(self, **{name: None})


def alternatives(target: Any, drafter: Any, *, template: bool, has_template: bool) -> Iterator[Reading]:
    """All single changes that are tried.

    Args:
        target (`PreTrainedModel`): The target.
        drafter ([`DraftModel`]): The drafter, perhaps in a `PeftModel`.
        template (`bool`): Whether prompts go through the chat template.
        has_template (`bool`): Whether there is one.
    """
    config = unwrap(drafter).config
    shifted = list(_shifted_taps(config, target))
    yield from (Reading(taps=taps, is_grave=_all_moved(taps, config)) for taps in shifted)
    if hasattr(config, "sample_from_anchor"):
        if config.sample_from_anchor is False or config.block_size > 1:
            yield Reading(from_anchor=not config.sample_from_anchor)
        sizes = {size for size in (*range(2, 10), 12, 16) if size != config.block_size}
        yield from (Reading(block_size=size, is_grave=False) for size in sorted(sizes))
    yield from (Reading(rope=rope) for rope in _other_ropes(config, target))
    if unwrap(drafter).dtype != torch.float32:
        yield Reading(dtype=torch.float32)
    if has_template:
        yield Reading(template=not template)
    if has_adapter(target):
        yield Reading(target_adapter=False)
    if has_adapter(drafter):
        yield Reading(drafter_adapter=False)


def read_as(drafter: Any, reading: Reading) -> DraftModel:
    """The `drafter` under a `reading`, with shared weights unless the dtype changes; adapters are for the caller."""
    model = unwrap(drafter)
    if reading.dtype is not None:
        model = copy.deepcopy(model).to(reading.dtype)
    model = copy.copy(model)
    # A copy's own table of modules, so that another rope is not the original's too.
    model.__dict__["_modules"] = dict(model._modules)
    model.config = copy.deepcopy(model.config)
    if reading.from_anchor is not None:
        model.config.sample_from_anchor = reading.from_anchor
    if reading.block_size is not None:
        model.config.block_size = reading.block_size
    if reading.rope is not None:
        model.config.decoder_config.rope_parameters = reading.rope_parameters
        model.rotary_emb = model.family.rotary(model.config.decoder_config).to(model.device)
    return model


def _all_moved(taps: tuple[int, ...], config: Any) -> bool:
    return all(new != old for new, old in zip(taps, config.target_layer_ids, strict=True))


def _shifted_taps(config: Any, target: Any) -> Iterator[tuple[int, ...]]:
    """All taps shifted by one either way, and each alone."""
    taps = tuple(config.target_layer_ids)
    num_layers = unwrap(target).config.get_text_config().num_hidden_layers
    shifts = [[step] * len(taps) for step in (1, -1)]
    if len(taps) > 1:
        places = range(len(taps))
        shifts += [[step * (place == one) for place in places] for one in places for step in (1, -1)]
    for shift in shifts:
        shifted = tuple(tap + step for tap, step in zip(taps, shift, strict=True))
        try:
            check_taps(list(shifted), num_layers, with_last=taps[-1] == num_layers - 1)
        except ValueError:
            continue
        yield shifted


def _other_ropes(config: Any, target: Any) -> Iterator[tuple[tuple[str, Any], ...]]:
    """The target's rope, the usual bases, and none of what the config adds."""
    decoder = config.decoder_config
    own = getattr(decoder, "rope_parameters", None)
    if not isinstance(own, dict) or "rope_theta" not in own:
        return
    family = get_family(decoder.model_type)
    theirs = family.decoder_config(unwrap(target).config.get_text_config(), 1).rope_parameters
    others = [theirs, {"rope_type": "default", "rope_theta": own["rope_theta"]}]
    others += [{"rope_type": "default", "rope_theta": base} for base in (1e4, 1e5, 5e5, 1e6)]
    seen = [dict(own)]
    for rope in others:
        if rope not in seen:
            seen.append(rope)
            yield tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in rope.items())
