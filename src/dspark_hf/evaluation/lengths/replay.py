"""Decisions on lengths, replayed on recorded blocks at the cost of a table: what a policy is worth, without a clock.

Shapes: R rows, n slots.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dspark_hf.evaluation.lengths.block_records import BlockRecord
from dspark_hf.generation.lengths.round_counts import RoundCounts
from dspark_hf.generation.lengths.schedule import Drafted, Schedule
from dspark_hf.generation.lengths.scheduler import PrefixScheduler
from dspark_hf.generation.lengths.step_cost import StepCost
from dspark_hf.generation.lengths.track_record import TrackRecord

# Tokens before a pass, for the table.
_CONTEXT = 256


@dataclass
class Replay(RoundCounts):
    """What a policy made of recorded blocks: the sums of [`RoundCounts`], a round being one of a whole batch.

    Attributes:
        seconds, plain_seconds (`float`): By the table, of all rounds, and of plain steps for the same answers.
        drafted_rounds (`int`): Rounds that the drafter was asked in.
        decision_seconds (`float`): By the clock, that the decisions took.
    """

    seconds: float = 0.0
    plain_seconds: float = 0.0
    drafted_rounds: int = 0
    decision_seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Times as fast as plain steps."""
        return self.plain_seconds / self.seconds


@dataclass
class _Row:
    record: BlockRecord
    place: int = 0

    @property
    def left(self) -> int:
        """Tokens that are still to come."""
        return len(self.record.lens) - self.place


def replay(
    records: Sequence[BlockRecord],
    batch_size: int,
    options: PrefixScheduler,
    cost: StepCost,
    max_draft_len: int | None = None,
    *,
    remembers: bool = False,
) -> Replay:
    """Go through recorded answers in batches, as `generate()` would.

    Args:
        records (`Sequence[BlockRecord]`): Of answers; they are repeated where a batch has more rows.
        batch_size (`int`): Rows of a batch, which leave as they end.
        options ([`PrefixScheduler`]): How lengths are decided.
        cost ([`StepCost`]): What passes take, for decisions and for the sum.
        max_draft_len (`int`, *optional*): Most drafts of a row.
        remembers (`bool`, *optional*, defaults to `False`): Whether batches know what earlier ones told, as greedy
            calls do; sampled ones start anew.

    Returns:
        [`Replay`].
    """
    num_slots = len(records[0].max_probs[0])
    records = list(records) * -(-batch_size // len(records))
    result, known = Replay(), TrackRecord(num_slots, batch_size)
    for start in range(0, len(records) - batch_size + 1, batch_size):
        rows = [_Row(record) for record in records[start : start + batch_size]]
        known = known if remembers else TrackRecord(num_slots, batch_size)
        known.begin_call(options.probe_interval, cost)
        schedule = Schedule(options, cost, num_slots)
        result.plain_seconds += _plain_seconds(cost, [row.left for row in rows])
        while rows:
            gains = _round(rows, schedule, known, max_draft_len, cost, result)
            for row, gain in zip(rows, gains, strict=True):
                row.place += gain + 1
            rows = [row for row in rows if row.left > 0]
    return result


def _round(
    rows: list[_Row], schedule: Schedule, known: TrackRecord, most: int | None, cost: StepCost, result: Replay
) -> list[int]:
    """One round of a batch; drafts that stand, of each row."""
    started, num_rows = time.perf_counter(), len(rows)
    schedule.begin([row.left for row in rows], _CONTEXT)
    limit = schedule.slots(known, num_rows)
    limit = limit if most is None else min(limit, most)
    lens, parts = [min(limit, row.left - 1) for row in rows], []
    is_drafted = max(lens) > 0
    if is_drafted:
        survival = known.predict(_signals(rows, max(lens)), num_rows, max(lens))
        parts = [Drafted(known, list(range(num_rows)), survival)]
        lens = schedule.cut(parts, lens)
    result.decision_seconds += time.perf_counter() - started
    stood = [min(n, row.record.lens[row.place]) for n, row in zip(lens, rows, strict=True)]
    if is_drafted:
        started = time.perf_counter()
        judged = [num + (num < n) for num, n in zip(stood, lens, strict=True)]
        schedule.learn(parts, lens, judged, stood, stood)
        result.decision_seconds += time.perf_counter() - started
    num_tokens = num_rows + sum(lens)
    result.seconds += float(cost.verify(num_tokens, _CONTEXT)[-1]) + cost.draft(num_rows) * is_drafted
    result.rounds += 1
    result.drafted_rounds += is_drafted
    result.verifications += num_rows
    result.emitted_tokens += num_rows + sum(stood)
    result.verified_tokens += sum(lens)
    result.accepted_tokens += sum(stood)
    return stood


def _signals(rows: Sequence[_Row], num_slots: int) -> dict[str, np.ndarray]:
    signals = {"max_probs": np.array([row.record.max_probs[row.place][:num_slots] for row in rows])}
    if rows[0].record.confidence_logits is not None:
        logits = [row.record.confidence_logits[row.place][:num_slots] for row in rows]
        signals = {"logits": np.array(logits), **signals}
    return signals


def _plain_seconds(cost: StepCost, lens: Sequence[int]) -> float:
    seconds = cost.verify(len(lens), _CONTEXT)
    return float(sum(seconds[sum(left > step for left in lens)] for step in range(max(lens))))
