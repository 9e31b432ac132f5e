"""How many candidates a slot needs, and what judging whole blocks gains: on one set of answers, without drawing luck.

Answers are written by the target. At every anchor the drafter's block is computed on the true tokens, and the expected
tokens of a round follow from the overlap of draft and target in each slot; so every number of candidates is judged on
the same text. `--verification` drafts blocks instead and adds up the chances that each verification gives them.

python benchmarks/measure_candidates.py --data prompts.jsonl --limit 30
python benchmarks/measure_candidates.py --data prompts.jsonl --limit 100 --verification
"""

import argparse
import json
import random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.logits_process import TopPLogitsWarper

import dspark_hf.generation.tokens.sampling as sampling
from dspark_hf import AutoDrafter, SpeculationConfig
from dspark_hf.evaluation import encode_prompts, load_prompts
from dspark_hf.hub.embedded import resolve_drafter, resolve_target
from dspark_hf.modeling.vocabulary import tokens_of
from dspark_hf.ops.verify import block_chances

NUM_CANDIDATES = (4, 16, 32, 64, 128, 256, 512, None)
MODES = ((0.0, 1.0), (0.7, 1.0), (1.0, 1.0), (1.0, 0.9))


def interval(values, weights=None, num_draws=1000):
    """95% bootstrap interval over prompts of sum(values) / sum(weights)."""
    chooser = random.Random(0)
    weights = weights or [1] * len(values)
    draws = []
    for _ in range(num_draws):
        places = chooser.choices(range(len(values)), k=len(values))
        draws.append(sum(values[i] for i in places) / sum(weights[i] for i in places))
    draws.sort()
    return sum(values) / sum(weights), draws[int(0.025 * num_draws)], draws[int(0.975 * num_draws)]


@torch.no_grad()
def teacher_forced(target, drafter, ids, start, temperature, top_p):
    """Expected tokens of a round at every anchor of an answer, summed, by number of candidates; and the anchors."""
    taps = drafter.config.target_layer_ids
    out = target(ids, output_hidden_states=True)
    features = torch.cat([out.hidden_states[tap + 1] for tap in taps], -1)
    num_slots = drafter.config.num_slots
    anchors = torch.arange(start - 1, ids.shape[1] - num_slots - 1).unsqueeze(0)
    if anchors.shape[1] < 1:
        return {}, 0
    output = drafter(ids, features, anchors, torch.ones_like(anchors, dtype=torch.bool))
    hidden, markov = output.hidden[0], output.markov_states[0]  # [A, n, E]
    # What a vocabulary's tail gets under a low temperature and top-p is nothing.
    warper = TopPLogitsWarper(top_p) if top_p < 1 else None

    def shaped(scores):
        scores = scores.float() / (temperature or 1.0)
        return scores if warper is None else warper(None, scores)

    sums = dict.fromkeys(NUM_CANDIDATES, 0.0)
    for place in range(0, len(hidden), 16):
        rows = slice(place, place + 16)
        base = drafter.base_logits(hidden[rows])  # [a, n, D]
        bias = drafter.markov_head.markov_w2(markov[rows])
        slots = anchors[0, rows, None] + torch.arange(num_slots)  # position that predicts slot k
        p_logits = out.logits[0, slots]
        for count in NUM_CANDIDATES:
            best, entries = drafter.best_entries(base, count)
            scores = best + (bias if entries is None else bias.gather(-1, entries))
            tokens = tokens_of(entries, scores, drafter.draft_tokens)
            if temperature == 0:
                right = tokens.gather(-1, scores.argmax(-1, keepdim=True))[..., 0] == p_logits.argmax(-1)
                sums[count] += float(right.float().cumprod(-1).sum() + len(right))
                continue
            p = shaped(p_logits.flatten(0, 1)).softmax(-1).view(p_logits.shape)
            q = shaped(scores.flatten(0, 1)).softmax(-1).view(scores.shape)
            overlap = torch.minimum(p.gather(-1, tokens), q).sum(-1)
            sums[count] += float(overlap.cumprod(-1).sum() + len(overlap))
    return sums, anchors.shape[1]


class Judge:
    """Stands in for `verify_sampled` and adds up what either verification is expected to accept."""

    def __init__(self):
        self.verify, self.sums = sampling.verify_sampled, []

    def __call__(self, draft_ids, candidates, scores, lengths=None, *args):
        if candidates is not None:
            num_slots = draft_ids.shape[1]
            lengths = torch.full((len(draft_ids),), num_slots) if lengths is None else lengths
            p = scores[:, :-1].float().softmax(-1)
            drawn_p, drawn_q = p.gather(-1, draft_ids.unsqueeze(-1))[..., 0], candidates.prob_of(draft_ids)
            chances, _ = block_chances(drawn_p, drawn_q, p.gather(-1, candidates.ids), candidates.probs, lengths)
            block = sum(1 - (1 - chances[:, slot:]).prod(-1) for slot in range(num_slots))
            token = (drawn_p / drawn_q).clamp_max(1).cumprod(-1).sum(-1)
            self.sums.append((float(token.sum()), float(block.sum()), len(draft_ids)))
        return self.verify(draft_ids, candidates, scores, lengths, *args)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, action="append")
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--drafter", default="embedded")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--limit", type=int, default=30, help="prompts of each file")
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--verification", action="store_true")
    args = parser.parse_args()
    path = resolve_target(args.target)
    target = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    drafter = AutoDrafter.from_pretrained(resolve_drafter(args.drafter), dtype=target.dtype).eval().bind(target)
    prompts = [
        encode_prompts([prompt], tokenizer)["input_ids"]
        for data in args.data
        for prompt in load_prompts(data, args.limit)
    ]
    report, alone = {}, SpeculationConfig(prompt_lookup=False, policy="fixed")
    for temperature, top_p in MODES:
        name = f"T={temperature:g}" + (f" top_p={top_p}" if top_p < 1 else "")
        options = {"max_new_tokens": args.max_new_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            options |= {"temperature": temperature, "top_k": 0, "top_p": top_p}
        if args.verification and temperature == 0:
            continue
        torch.manual_seed(0)
        rows = []
        for ids in prompts:
            if args.verification:
                judge = sampling.verify_sampled = Judge()
                target.generate(ids, assistant_model=drafter, speculation=alone, **options)
                sampling.verify_sampled = judge.verify
                if judge.sums:
                    token, block, rounds = map(sum, zip(*judge.sums, strict=True))
                    rows.append((token + rounds, block + rounds, rounds))
            else:
                whole = target.generate(ids, assistant_model=drafter, **options)
                sums, count = teacher_forced(target, drafter, whole, ids.shape[1], temperature, top_p)
                if count:
                    rows.append((*sums.values(), count))
        columns = list(zip(*rows, strict=True))
        rounds = columns.pop()
        if args.verification:
            gains = [block - token for token, block in zip(*columns, strict=True)]
            columns = {"token": columns[0], "block": columns[1], "block - token": gains}
            report[name] = {key: interval(column, rounds) for key, column in columns.items()}
        else:
            report[name] = {str(count): interval(column, rounds) for count, column in zip(sums, columns, strict=True)}
            whole = sum(columns[-1])
            losses = [round(100 * (1 - sum(column) / whole), 2) for column in columns]
            report[name]["loss in %"] = dict(zip(map(str, sums), losses, strict=True))
        print(name, json.dumps(report[name]), flush=True)


if __name__ == "__main__":
    main()
