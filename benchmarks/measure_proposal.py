"""Time and peak memory of drafting a block and verifying it at T = 1, with sparse and with whole distributions.

The sequential stage and the verification of one sampled round, behind the output head's logits, which both ways share;
each way in a process of its own, interleaved. "whole" is what a proposal over all tokens costs: a product with the
whole vocabulary for each slot, and distributions `(rows, slots, vocab)` of drafter and target.

python benchmarks/measure_proposal.py --vocab_size 151936 --rank 256 --rows 8 --slots 7
"""

import argparse
import multiprocessing
import statistics
import time

import torch
from measure_loss import PeakMemory

from dspark_hf.modeling.heads.markov import MarkovHead
from dspark_hf.ops.candidates import Candidates
from dspark_hf.ops.verify import draw, verify_sampled


def sparse_round(head, base, anchors, scores, num_candidates):
    best, entries = base.topk(num_candidates, dim=-1)
    previous, ids, drawn_from = anchors, [], []
    for slot in range(base.shape[1]):
        vector, _ = head.step(head.markov_w1(previous), None, None)
        logits = best[:, slot] + head.bias(vector, entries[:, slot])
        probs = logits.float().softmax(-1)
        previous = entries[:, slot].gather(1, draw(probs).unsqueeze(1)).squeeze(1)
        ids.append(previous)
        drawn_from.append(Candidates(entries[:, slot], probs))
    return verify_sampled(torch.stack(ids, 1), Candidates.stack(drawn_from), scores)


def whole_round(head, base, anchors, scores, _):
    previous, ids, probs = anchors, [], []
    for slot in range(base.shape[1]):
        vector, _ = head.step(head.markov_w1(previous), None, None)
        q = (base[:, slot] + head.bias(vector)).float().softmax(-1)
        previous = draw(q)
        ids.append(previous)
        probs.append(q)
    ids, q = torch.stack(ids, 1), torch.stack(probs, 1)
    p = scores.float().softmax(-1)
    drawn_p, drawn_q = (x.gather(-1, ids.unsqueeze(-1)).squeeze(-1) for x in (p[:, :-1], q))
    accepted = (torch.rand(ids.shape) * drawn_q < drawn_p).long().cumprod(-1).sum(-1)
    rows = torch.arange(len(ids))
    left = (p[rows, accepted] - q[rows, accepted.clamp_max(ids.shape[1] - 1)]).clamp_min_(0)
    return accepted, draw(torch.where((accepted < ids.shape[1]).unsqueeze(1), left, p[rows, accepted]))


def measure(kind, args, queue):
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    with torch.no_grad():
        head = MarkovHead(args.vocab_size, 1, args.rank, args.vocab_size).to(dtype)
        base = (3 * torch.randn(args.rows, args.slots, args.vocab_size)).to(dtype)
        scores = (3 * torch.randn(args.rows, args.slots + 1, args.vocab_size)).to(dtype)
        anchors = torch.randint(args.vocab_size, (args.rows,))
        run = sparse_round if kind == "sparse" else whole_round
        run(head, base[:1, :1], anchors[:1], scores[:1, :2], args.candidates)
        memory = PeakMemory()
        start = time.perf_counter()
        run(head, base, anchors, scores, args.candidates)
        seconds = time.perf_counter() - start
        queue.put((seconds, memory.stop()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = (("vocab_size", 151936), ("rank", 256), ("rows", 8), ("slots", 7), ("candidates", 512), ("repeats", 5))
    for name, default in sizes:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    context, results = multiprocessing.get_context("spawn"), {"whole": [], "sparse": []}
    for _ in range(args.repeats):
        for kind, measured in results.items():
            queue = context.Queue()
            process = context.Process(target=measure, args=(kind, args, queue))
            process.start()
            measured.append(queue.get())
            process.join()
    seconds, memory = ({kind: statistics.median(x[i] for x in measured) for kind, measured in results.items()}
                       for i in (0, 1))  # fmt: skip
    for kind in results:
        print(f"{kind:6}: peak extra memory {memory[kind]:.0f} MiB")
    print(f"sparse / whole: time {seconds['sparse'] / seconds['whole']:.3f}, "
          f"memory {memory['sparse'] / memory['whole']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
