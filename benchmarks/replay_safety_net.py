"""What the safety net costs a drafter or saves with it, in plain steps, on answers that record_drafts.py recorded.

The net's decisions are replayed, one answer after the other, at the estimated cost of rounds. `net` is what the rounds
take, `always` what they take with whole blocks in every round, `plain` one step a token; `lost` is how much longer the
net takes than the shorter of the last two; `accused` says after how many answers the drafter was warned of, if ever.

python benchmarks/replay_safety_net.py record.jsonl other.jsonl
"""

import argparse
import json
from pathlib import Path

import torch
from dspark_hf.generation.lengths.cost import RoundCost

from dspark_hf.generation.lengths import safety

CPU = torch.device("cpu")


def replay(lens, num_slots, max_new_tokens, net, cost):
    """Rounds of an answer.

    Args:
        lens (`list[int]`): Drafts that would stand behind each of its tokens but the last.
        num_slots (`int`): Slots of the drafter.
        max_new_tokens (`int`): Most tokens of an answer.
        net ([`SafetyNet`]): Decides.
        cost ([`RoundCost`]): What rounds cost.

    Returns:
        `list[tuple[float, int, int]]`: Of each round what it took in plain steps, its drafts, and how many stood.
    """
    rounds, place = [], 0
    while place < len(lens):
        limit = net.limit(num_slots)
        num_left = max_new_tokens - 1 - place
        num_drafts = min(cost.limit(limit, 1, num_left), num_left - 1) if limit else 0
        gain = min(lens[place], num_drafts)
        extra = cost.extra([num_drafts], num_drafts > 0)
        net.learn([gain] if limit else [], extra)
        rounds.append((1 + extra, num_drafts, gain))
        place += gain + 1
    return rounds


def measure(answers, num_slots, max_new_tokens, remembers, cost):
    """Plain steps with the net, with whole blocks, and without drafts; rounds paused, of how many; when accused."""
    net, always = safety.SafetyNet(), safety.SafetyNet(enabled=False)
    num_judged = num_accepted = num_paused = num_rounds = 0
    totals, accused = [0.0, 0.0, 0], None
    for number, lens in enumerate(answers, start=1):
        net = net if remembers else safety.SafetyNet()
        rounds = replay(lens, num_slots, max_new_tokens, net, cost)
        totals[0] += sum(steps for steps, _, _ in rounds)
        totals[1] += sum(steps for steps, _, _ in replay(lens, num_slots, max_new_tokens, always, cost))
        totals[2] += len(lens)
        num_rounds += len(rounds)
        num_paused += sum(num_drafts == 0 for _, num_drafts, _ in rounds[:-1])
        num_judged += sum(num_drafts > 0 for _, num_drafts, _ in rounds)
        num_accepted += sum(gain > 0 for _, _, gain in rounds)
        is_low = num_accepted < safety._COLLAPSED_RATE * num_judged and num_judged >= safety._MIN_JUDGED
        if accused is None and net.has_paused and is_low:
            accused = number
    return *totals, num_paused, num_rounds, accused


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="of the machine that is priced")
    args = parser.parse_args()
    for path in args.records:
        head, *answers = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        answers = [answer["lens"] for answer in answers]
        for threads in args.threads:
            torch.set_num_threads(threads)
            for remembers in (True, False):
                result = measure(answers, head["num_slots"], head["max_new_tokens"], remembers, RoundCost(CPU))
                net, always, plain, num_paused, num_rounds, accused = result
                lost = net / min(always, plain) - 1
                way = "as one life" if remembers else "each anew"
                print(f"{path.stem}, {len(answers)} answers, {threads} threads, {way}: plain {plain}", end=", ")
                print(f"always {always:.0f}, net {net:.0f} ({lost:+.2%} lost)", end=", ")
                print(f"paused {num_paused} of {num_rounds}, accused {accused}")


if __name__ == "__main__":
    main()
