"""Records how many drafts would stand behind every token of answers, so that decisions on drafting can be replayed.

For each answer of the target the drafter is asked at every place, with the answer's own tokens in front of each slot.
In greedy decoding a slot stands if its best token is the answer's next one. When sampling it stands with probability
min(1, q / p) of that token, given that the token came out: what acceptance by min(1, p / q) amounts to.

python benchmarks/record_drafts.py --data mt-bench.jsonl gsm8k.jsonl --limit 50 --out record.jsonl
python benchmarks/record_drafts.py --data mt-bench.jsonl --random --temperature 1 --dtype float32 --out record.jsonl
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf import AutoDrafter
from dspark_hf.data.features import TargetFeatures
from dspark_hf.evaluation import DecodingSettings, encode_prompts, generate_plain, load_prompts, provenance
from dspark_hf.hub.embedded import resolve_drafter, resolve_target

# Places drafted for at once.
CHUNK = 32


@torch.no_grad()
def standing_lens(target, drafter, prompt, answer, temperature):
    """Drafts that would stand behind each token of an answer but its last.

    Args:
        target (`PreTrainedModel`): The model that gave the answer.
        drafter ([`DSparkModel`]): Its drafter.
        prompt (`list[int]`): Tokens before the answer.
        answer (`list[int]`): The answer.
        temperature (`float`): That it was sampled at; 0 for greedy decoding.

    Returns:
        `list[int]`
    """
    ids = torch.tensor([prompt + answer])
    features, last = TargetFeatures(target, drafter.config.target_layer_ids)(ids)
    if temperature > 0:
        # Of each token of the answer.
        logits = target.get_output_embeddings()(last[0, len(prompt) - 1 : -1]).float() / temperature
        log_probs = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
    places, num_slots = range(len(prompt), ids.shape[1] - 1), drafter.config.num_slots
    lens = []
    for start in range(0, len(places), CHUNK):
        anchors = torch.tensor(places[start : start + CHUNK])
        state = drafter.start(len(anchors))
        # An anchor's own features are not known yet.
        drafter.extend(state, features[:, : anchors[-1]].expand(len(anchors), -1, -1), anchors.tolist())
        stands = []

        def follow(logits, token_ids, drafted_ids, anchors=anchors, stands=stands):
            at = anchors + 1 + drafted_ids.shape[1]
            is_known, at = at < ids.shape[1], at.clamp_max(ids.shape[1] - 1)
            # Places of the answer's tokens among all that can be drafted; without one, no draft can stand.
            is_token = token_ids == ids[0, at].unsqueeze(1)
            places, is_known = is_token.int().argmax(-1), is_known & is_token.any(-1)
            if temperature == 0:
                stands.append(is_known & (logits.max(-1).indices == places))
            else:
                q = (logits.float() / temperature).log_softmax(-1).gather(1, places[:, None])[:, 0]
                stands.append(is_known & (torch.rand(len(at)) < (q - log_probs[at - len(prompt)]).exp()))
            return places, None

        drafter.propose(state, ids[0, anchors], follow, num_slots)
        lens += torch.stack(stands, 1).long().cumprod(1).sum(1).tolist()
    return lens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="prompt files")
    parser.add_argument("--limit", type=int, default=34, help="prompts of each file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--drafter", default="embedded")
    parser.add_argument("--random", action="store_true", help="a drafter of these sizes that nobody trained")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=34, help="answers made at once")
    args = parser.parse_args()
    torch.manual_seed(0)
    path = resolve_target(args.target)
    target = AutoModelForCausalLM.from_pretrained(path, dtype=args.dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    drafter = AutoDrafter.from_pretrained(resolve_drafter(args.drafter), dtype=target.dtype)
    if args.random:
        drafter = type(drafter)(drafter.config).to(target.dtype)
    drafter.eval().bind(target)
    settings = DecodingSettings(args.max_new_tokens, args.temperature)
    prompts = [(Path(file).stem, prompt) for file in args.data for prompt in load_prompts(file, args.limit)]
    partial = args.out.with_name(args.out.name + ".part")
    with partial.open("w", encoding="utf-8") as file:
        head = {"num_slots": drafter.config.num_slots, "max_new_tokens": args.max_new_tokens}
        print(json.dumps({**head, "provenance": provenance()}), file=file, flush=True)
        for start in range(0, len(prompts), args.batch_size):
            some = prompts[start : start + args.batch_size]
            inputs = encode_prompts([prompt for _, prompt in some], tokenizer)
            answers = generate_plain(target, inputs, settings, seed=start).ids
            for row, ((name, _), answer) in enumerate(zip(some, answers, strict=True)):
                prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
                lens = standing_lens(target, drafter, prompt, answer, args.temperature)
                print(json.dumps({"set": name, "lens": lens}), file=file, flush=True)
            print(f"{start + len(some)} of {len(prompts)}")
    partial.rename(args.out)


if __name__ == "__main__":
    main()
