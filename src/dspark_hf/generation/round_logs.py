"""What rounds leave on their device for the statistics, read once at the end."""

import torch


class ConfidenceLog:
    """Keeps each round's confidence on its device, so that reading it costs one wait at the end."""

    def __init__(self) -> None:
        self._rounds: list[tuple[torch.Tensor | None, list[bool], list[bool]]] = []

    def note(self, live: list[bool], logits: torch.Tensor | None, drafted: list[bool]) -> None:
        """Keep a round's confidence.

        Args:
            live (`list[bool]`): Which rows the round verified something of.
            logits (`torch.Tensor` of shape `(rows, slots)` or `None`): Of the confidence head, if there are any.
            drafted (`list[bool]`): The rows that the drafter drafted for; only theirs mean anything.
        """
        self._rounds.append((logits, list(live), list(drafted)))

    def read(self) -> list[list[float]]:
        """Confidences of each verification, in order; empty if no round had any."""
        tensors = [logits for logits, _, _ in self._rounds if logits is not None]
        if not tensors:
            return []
        flat = iter(torch.cat([logits.flatten().float() for logits in tensors]).sigmoid().tolist())
        rows = []
        for logits, live, drafted in self._rounds:
            width = 0 if logits is None else logits.shape[1]
            for is_live, is_drafted in zip(live, drafted, strict=True):
                row = [next(flat) for _ in range(width)]
                if is_live:
                    rows.append(row if is_drafted else [])
        return rows


class DraftLog:
    """Keeps each round's drafts on their device, so that reading them costs one wait at the end.

    Args:
        enabled (`bool`): Otherwise it keeps nothing.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._rounds: list[tuple[torch.Tensor, list[bool], list[int]]] = []

    def note(self, live: list[bool], ids: torch.Tensor, lens: list[int]) -> None:
        """Keep a round's drafts.

        Args:
            live (`list[bool]`): Which rows the round verified something of.
            ids (`torch.LongTensor` of shape `(rows, n)`): The drafts.
            lens (`list[int]`): How many of each row were verified.
        """
        if self._enabled:
            # A compiled drafter writes the next drafts into the same memory.
            self._rounds.append((ids.clone(), list(live), list(lens)))

    def read(self) -> list[list[int]]:
        """Drafts of each verification, in order; empty if nothing was kept."""
        if not self._rounds:
            return []
        flat = iter(torch.cat([ids.flatten() for ids, _, _ in self._rounds]).tolist())
        rows = []
        for ids, live, lens in self._rounds:
            drafts = [[next(flat) for _ in range(ids.shape[1])] for _ in live]
            rows += [row[:num] for row, is_live, num in zip(drafts, live, lens, strict=True) if is_live]
        return rows
