"""What happened during one `generate()`."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import compress

# Of each verification: what is always counted, and what is noted where there is something to note.
_COUNTS = ("verified_lens", "accepted_lens", "emitted_lens", "row_ids", "from_lookup", "drafted_lens")
_NOTES = ("confidences", "draft_ids")


@dataclass
class SpeculationStats:
    """Counts and times of the latest generation, as `drafter.last_stats`.

    A *verification* is one round of one sequence; at batch 1 every round is one verification. The lists hold one entry
    per verification, in order.

    Attributes:
        rounds (`int`): Forward passes of the target after the prefill.
        new_tokens (`int`): Tokens made, over all sequences, those of the prefill included.
        verified_lens (`list[int]`): Drafts that were verified.
        accepted_lens (`list[int]`): Drafts that became output.
        emitted_lens (`list[int]`): Tokens that became output, the target's own included.
        row_ids (`list[int]`): Sequence of each verification.
        from_lookup (`list[bool]`): Whether its drafts were looked up in the text (see [`PromptLookup`]).
        paused_rounds (`int`): Rounds in which the drafter did not draft because that does not pay.
        confidences (`list[list[float]]`): Confidence of each drafted slot; empty for a drafter without that head.
        drafted_lens (`list[int]`): Drafts that were made, of which a policy may have left some unverified.
        draft_ids (`list[list[int]]`): The drafts that were verified; empty unless `SpeculationConfig.record_drafts`.
        round_kind (`str`): `"ragged"`, rounds of exactly as many tokens as are verified, or `"static"`, rounds of
            fixed shapes on the device.
        why_ragged (`str` or `None`): Where static rounds were asked for and others were run, what needed those.
        costs (`str` or `None`): The costs that lengths of the drafter's blocks went by: `"given"`, `"measured"` (by
            `dspark profile`) or `"rule of thumb"`; None where the policy asks for none.
        host_reads (`int`): Times that rounds waited for the device; what processors and criteria do is not counted.
        buckets (`dict[str, int]`): Static rounds of each shape, `rows x width x columns`.
        graphs (`int`): CUDA graphs that were captured.
        total_seconds (`float`): Wall time of the decoding loop, prefill included.
        prefill_seconds, target_seconds, drafter_seconds (`float` or `None`):
            Seconds in the prefill, in the verification passes and in the drafter; None where time was not measured
            (see `SpeculationConfig.measure_time`).
    """

    rounds: int = 0
    new_tokens: int = 0
    verified_lens: list[int] = field(default_factory=list)
    accepted_lens: list[int] = field(default_factory=list)
    emitted_lens: list[int] = field(default_factory=list)
    row_ids: list[int] = field(default_factory=list)
    from_lookup: list[bool] = field(default_factory=list)
    paused_rounds: int = 0
    confidences: list[list[float]] = field(default_factory=list)
    drafted_lens: list[int] = field(default_factory=list)
    draft_ids: list[list[int]] = field(default_factory=list)
    round_kind: str = "ragged"
    why_ragged: str | None = None
    costs: str | None = None
    host_reads: int = 0
    buckets: dict[str, int] = field(default_factory=dict)
    graphs: int = 0
    total_seconds: float = 0.0
    prefill_seconds: float | None = None
    target_seconds: float | None = None
    drafter_seconds: float | None = None

    @property
    def tau(self) -> float:
        """Mean tokens per round and sequence, the target's own included; 0.0 before the first round."""
        return sum(self.emitted_lens) / len(self.emitted_lens) if self.emitted_lens else 0.0

    @property
    def verified_tokens(self) -> int:
        """Drafts verified in all."""
        return sum(self.verified_lens)

    @property
    def lookup_verifications(self) -> int:
        """Verifications of drafts that were looked up."""
        return sum(self.from_lookup)

    @property
    def lookup_verified_tokens(self) -> int:
        """Drafts verified that were looked up."""
        return sum(num for num, looked_up in zip(self.verified_lens, self.from_lookup, strict=True) if looked_up)

    @property
    def lookup_accepted_tokens(self) -> int:
        """Drafts accepted that were looked up."""
        return sum(num for num, looked_up in zip(self.accepted_lens, self.from_lookup, strict=True) if looked_up)

    @property
    def rest_seconds(self) -> float | None:
        """Seconds outside the forward passes of target and drafter; None where time was not measured."""
        if self.target_seconds is None:
            return None
        return max(0.0, self.total_seconds - self.prefill_seconds - self.target_seconds - self.drafter_seconds)

    @property
    def slot_rates(self) -> list[float]:
        """P(slot k accepted | all before accepted), for slots 1, 2, ... as far as any was judged."""
        return [accepted / judged for judged, accepted in self._per_slot(conditional=True)]

    @property
    def slot_survival(self) -> list[float]:
        """P(slot k and all before it accepted | slot k verified), for slots 1, 2, ..."""
        return [accepted / judged for judged, accepted in self._per_slot(conditional=False)]

    def judged(self) -> Iterator[tuple[float, bool]]:
        """Confidence and whether the draft stood, of every slot whose predecessors were all accepted."""
        rounds = zip(self.confidences, self.verified_lens, self.accepted_lens, self.emitted_lens, strict=False)
        for confidences, verified_len, accepted_len, emitted_len in rounds:
            # The slot after the accepted ones was judged too, unless it was not verified or the output ended first.
            is_refused = accepted_len < verified_len and emitted_len > accepted_len
            for slot, confidence in enumerate(confidences[: accepted_len + is_refused]):
                yield confidence, slot < accepted_len

    def reliability(self, num_bins: int = 10) -> list[dict[str, float]]:
        """Confidence against acceptance, over slots whose predecessors were all accepted.

        Args:
            num_bins (`int`, *optional*, defaults to 10): Bins of equal width from 0 to 1.

        Returns:
            `list[dict]`: For each bin that is not empty, in order: mean `confidence`, `accepted` (a fraction) and
            `count`.
        """
        sums = [[0.0, 0, 0] for _ in range(num_bins)]
        for confidence, stood in self.judged():
            one = sums[min(int(confidence * num_bins), num_bins - 1)]
            one[0] += confidence
            one[1] += stood
            one[2] += 1
        return [
            {"confidence": total / count, "accepted": accepted / count, "count": count}
            for total, accepted, count in sums
            if count
        ]

    def _per_slot(self, conditional: bool) -> list[tuple[int, int]]:
        counts = []
        for slot in range(1, max(self.verified_lens, default=0) + 1):
            judged = accepted = 0
            for verified_len, accepted_len, emitted_len in zip(
                self.verified_lens, self.accepted_lens, self.emitted_lens, strict=True
            ):
                # Where the output ended on a draft (eos, budget), nothing is known about the slots behind it.
                known_len = accepted_len if emitted_len == accepted_len else verified_len
                if slot <= known_len and not (conditional and accepted_len < slot - 1):
                    judged += 1
                    accepted += accepted_len >= slot
            if judged == 0:
                break
            counts.append((judged, accepted))
        return counts

    def without_lookup(self) -> "SpeculationStats":
        """The verifications whose drafts were the drafter's, or that had none; seconds and counts stay as they are."""
        keep = [not looked_up for looked_up in self.from_lookup]
        names = (*_COUNTS, *_NOTES)
        return replace(self, **{name: list(compress(getattr(self, name), keep)) for name in names})

    def record(
        self,
        row_id: int,
        verified_len: int,
        accepted_len: int,
        emitted_len: int,
        from_lookup: bool = False,
        drafted_len: int | None = None,
    ) -> None:
        """Note one verification.

        Args:
            row_id (`int`): The row of the batch.
            verified_len (`int`): Drafts that the target looked at.
            accepted_len (`int`): How many of them it took.
            emitted_len (`int`): Tokens that became text, the target's own included.
            from_lookup (`bool`, *optional*, defaults to `False`): Whether the drafts were looked up in the text.
            drafted_len (`int`, *optional*): Drafts that were made; `verified_len`, if not given.
        """
        self.drafted_lens.append(verified_len if drafted_len is None else drafted_len)
        self.from_lookup.append(from_lookup)
        self.row_ids.append(row_id)
        self.verified_lens.append(verified_len)
        self.accepted_lens.append(accepted_len)
        self.emitted_lens.append(emitted_len)

    def note_bucket(self, bucket: str, count: int = 1) -> None:
        """Count static rounds of a shape.

        Args:
            bucket (`str`): The shape.
            count (`int`, *optional*, defaults to 1): How many.
        """
        self.buckets[bucket] = self.buckets.get(bucket, 0) + count

    def add(self, other: "SpeculationStats") -> None:
        """Add what happened in another generation; seconds stay as they are.

        Args:
            other ([`SpeculationStats`]): It.
        """
        for name in _NOTES:
            if getattr(self, name) or getattr(other, name):
                # Where the drafter was never asked, nothing is noted of any verification.
                parts = [getattr(part, name) or [[]] * len(part.verified_lens) for part in (self, other)]
                setattr(self, name, parts[0] + parts[1])
        for bucket, count in other.buckets.items():
            self.note_bucket(bucket, count)
        for name in ("rounds", "new_tokens", "paused_rounds", "host_reads", "graphs"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _COUNTS:
            getattr(self, name).extend(getattr(other, name))

    def summary(self) -> str:
        """A few readable lines."""
        lines = [
            f"tau {self.tau:.2f} ({self.new_tokens} tokens, {self.rounds} rounds, {self.verified_tokens} drafts "
            f"verified, {sum(self.accepted_lens)} accepted)"
        ]
        # Lookup's slots are told below, unless there are no others.
        if rates := self.without_lookup().slot_rates or self.slot_rates:
            lines.append("accepted per slot, all before accepted: " + " ".join(f"{rate:.2f}" for rate in rates))
        if self.lookup_verifications:
            lines.append(
                f"looked up: {self.lookup_verified_tokens} drafts in {self.lookup_verifications} of "
                f"{len(self.from_lookup)} verifications, {self.lookup_accepted_tokens} accepted"
            )
        if self.round_kind == "static":
            looked_up = "" if any(self.from_lookup) else ", nothing looked up"
            shapes, graphs = len(self.buckets), self.graphs
            lines.append(f"static rounds: {shapes} shapes, {graphs} captured, {self.host_reads} host reads{looked_up}")
        elif self.why_ragged:
            lines.append(f"rounds are not static: {self.why_ragged}")
        if self.paused_rounds:
            most = ", most of them" if 2 * self.paused_rounds > self.rounds else ""
            lines.append(f"paused, as drafts did not pay: {self.paused_rounds} of {self.rounds} rounds{most}")
        if self.costs is not None:
            lines.append(f"costs of passes: {self.costs}")
        if self.target_seconds is not None:
            lines.append(
                f"seconds: {self.total_seconds:.3f} = prefill {self.prefill_seconds:.3f} + target "
                f"{self.target_seconds:.3f} + drafter {self.drafter_seconds:.3f} + rest {self.rest_seconds:.3f}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        paused = f", paused_rounds={self.paused_rounds}" if 2 * self.paused_rounds > self.rounds else ""
        return f"SpeculationStats(tau={self.tau:.2f}, new_tokens={self.new_tokens}, rounds={self.rounds}{paused})"
