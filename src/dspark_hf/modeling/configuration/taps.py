"""Which layers of a target a drafter reads."""

from dspark_hf.messages import shown


def check_taps(target_layer_ids: list[int], num_target_layers: int | None, *, with_last: bool = False) -> None:
    """Check which layers are tapped.

    Args:
        target_layer_ids (`list[int]`): The layers.
        num_target_layers (`int`, *optional*): Layers of the target; unknown, if None.
        with_last (`bool`, *optional*, defaults to `False`): Whether the last layer may be among them.

    Raises:
        `ValueError`: Unless these are ascending ids of layers that can be tapped.
    """
    last = max(target_layer_ids, default=0) + 1 if num_target_layers is None else num_target_layers - 1
    if (
        not target_layer_ids
        or any(not 0 <= tap < last + with_last for tap in target_layer_ids)
        or sorted(set(target_layer_ids)) != list(target_layer_ids)
    ):
        if with_last:
            raise ValueError(
                f"target_layer_ids must be ascending ids from 0 to {last} for a target of {last + 1} layers, got "
                f"{shown(target_layer_ids)}."
            )
        raise ValueError(
            f"target_layer_ids must be ascending ids from 0 to {last - 1} for a target of "
            f"{last + 1} layers (its last layer, {last}, is read after the final norm "
            f"and cannot be tapped), got {shown(target_layer_ids)}."
        )


def spread_taps(num_target_layers: int, num_taps: int) -> list[int]:
    """Evenly spaced taps from layer 1 to the third layer from the end: `[1, 9, 17, 25, 33]` of 36 (paper, 5.1).

    Args:
        num_target_layers (`int`): Layers of the target.
        num_taps (`int`): Taps wanted; a shallow target has fewer different ones.

    Returns:
        `list[int]`: Ascending layers, from 0.

    Raises:
        `ValueError`: If the target has fewer than two layers, or no tap is wanted.
    """
    if num_target_layers < 2 or num_taps < 1:
        raise ValueError(
            f"A drafter taps layers below the last one: it needs a target of two layers or more and one tap or more, "
            f"got {num_target_layers} layers and num_taps={num_taps}."
        )
    first, last = min(1, num_target_layers - 2), max(min(1, num_target_layers - 2), num_target_layers - 3)
    steps = max(num_taps - 1, 1)
    return sorted({round(first + step * (last - first) / steps) for step in range(num_taps)})
