"""A tiny drafter that was trained for its target, and the same one broken in each way that a diagnosis knows.

`python broken_drafters.py 20` goes through so many seeds and counts verdicts.
"""

import copy
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dspark_hf import DSparkModel
from dspark_hf.data.features import TargetFeatures
from dspark_hf.evaluation import diagnose
from dspark_hf.evaluation.diagnosis.reading import Reading
from dspark_hf.evaluation.diagnosis.texts import Texts
from dspark_hf.evaluation.diagnosis.trial import try_reading
from dspark_hf.trainers.objective import DistillObjective

VOCAB, TAPS = 61, [1, 3, 4]
OTHER_ROPE = {"rope_type": "default", "rope_theta": 20.0}
HEADER = VOCAB - 1  # what the chat template puts in front; its text goes by other rules


@dataclass(frozen=True)
class Case:
    """A pair, and what is wrong with it; a cause that may do no harm may stay unnamed then.

    Of two causes `alone` has drafters with one of them, by cause, for a target without an adapter, `plain`.
    """

    name: str
    causes: set[str]
    target: Any
    drafter: Any
    may_be_harmless: bool = False
    alone: dict[str, Any] = field(default_factory=dict)
    plain: Any = None
    tokenizer: Any = None  # one with a chat template
    is_raw: bool = False  # whether prompts do not go through it


def language(seed, num_rows, length, noise=0.1):
    """Rows that follow one of four permutations each, but for some noise: what comes next depends on all before."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(VOCAB - 2, generator=generator) + 1 for _ in range(4)])
    order = torch.randint(0, len(orders), (num_rows,), generator=generator)
    ids = torch.randint(1, VOCAB - 1, (num_rows, length), generator=generator)
    is_noise = torch.rand(num_rows, length, generator=generator) < noise
    for place in range(1, length):
        following = orders[order, ids[:, place - 1] - 1]
        ids[:, place] = torch.where(is_noise[:, place], ids[:, place], following)
    return ids


def chat_language(seed, num_rows, length):
    """Rows of two languages, one of which begins with a header."""
    rows = language(seed, num_rows, length)
    rows[::2] = torch.cat(
        [torch.full((len(rows[::2]), 1), HEADER), language(seed + 500, len(rows[::2]), length - 1)], 1
    )
    return rows


def chat_tokenizer():
    """Words w0, w1, ... and a chat template which puts the header in front."""
    words = Tokenizer(models.WordLevel({f"w{token}": token for token in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")
    made.chat_template = f"w{HEADER} {{% for message in messages %}}{{{{ message.content }}}}{{% endfor %}}"
    return made


def make_target(seed, num_steps=150, text_of=language):
    """A target that has learned a language of its own, or what `text_of(seed, num_rows, length)` gives."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=6,
                         num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1, eos_token_id=None,
                         bos_token_id=None, pad_token_id=0)  # fmt: skip
    target = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(target.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_steps)
    text = text_of(seed, 32 * num_steps, 24)
    for rows in text.split(32):
        target(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    target.language_seed = seed
    return target.eval()


def fresh(target):
    return DSparkModel.from_target(
        target, num_hidden_layers=2, target_layer_ids=TAPS, block_size=4, markov_rank=16, mask_token_id=VOCAB - 1
    ).eval()


def trained(target, seed, num_steps=200, num_rows=128, length=32, has_header=False):
    """A drafter after some steps on text that the target wrote, all of it behind the header, if it `has_header`."""
    torch.manual_seed(seed)
    drafter = fresh(target)
    options = {"do_sample": True, "temperature": 0.7, "top_k": 0}
    start = language(target.language_seed, num_rows, 4, noise=0.0)
    if has_header:
        start = torch.cat([torch.full((num_rows, 1), HEADER), start[:, :1]], 1)
    ids = target.generate(start, max_new_tokens=length - start.shape[1], speculation=False, **options)
    features, last = TargetFeatures(target, TAPS)(ids)
    optimizer = torch.optim.AdamW(drafter.parameters(), lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=num_steps)
    weights = drafter.config.loss_weights
    for _ in range(num_steps):
        rows = torch.randint(0, num_rows, (16,))
        anchors = torch.stack([torch.randperm(length - 6)[:8] + 1 for _ in rows])
        mask, everywhere = torch.ones(16, 8, dtype=torch.bool), torch.ones(16, length, dtype=torch.bool)
        objective = DistillObjective(
            ids[rows], everywhere, anchors, mask, last[rows], weights.ce_weight, weights.tv_weight,
            weights.confidence_weight, 4.0, 256,
        )  # fmt: skip
        drafter(ids[rows], features[rows], anchors, mask, objective=objective).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return drafter.eval()


def prompts(seed, num=6):
    return language(seed, 100 + num, 6, noise=0.0)[100:].tolist()


def changed(drafter, **fields):
    """The drafter with another config, its weights as they are; `half` makes float16 overflow."""
    drafter = copy.deepcopy(drafter)
    for name, value in fields.items():
        if name == "rope":
            drafter.config.decoder_config.rope_parameters = value
            drafter.rotary_emb = drafter.family.rotary(drafter.config.decoder_config)
        elif name == "half":
            with torch.no_grad():
                drafter.fc.weight.mul_(3e4)  # a norm follows, which takes it back where nothing overflows
            drafter = drafter.to(torch.float16)
        else:
            setattr(drafter.config, name, value)
    return drafter


def adapted(model, seed):
    """The model with a random adapter that changes much."""
    torch.manual_seed(seed + 100)
    modules = ["q_proj", "v_proj", "o_proj", "down_proj"]
    config = LoraConfig(r=4, lora_alpha=16, target_modules=modules, init_lora_weights=False)
    return get_peft_model(copy.deepcopy(model), config).eval()


def cases(target, drafter, seed):
    """Fitting, untrained, for another target, broken in each way, and in two ways at once."""
    below, slot = {"target_layer_ids": [tap - 1 for tap in TAPS]}, {"sample_from_anchor": False}
    other = make_target(seed + 1000, num_steps=50)
    yield Case("fits", set(), target, drafter)
    yield Case("untrained", {"untrained"}, target, fresh(target))
    yield Case("another target", {"another target"}, other, drafter)
    yield Case("taps below", {"taps"}, target, changed(drafter, **below), True)
    yield Case("one tap", {"taps"}, target, changed(drafter, target_layer_ids=[1, 2, 4]), True)
    yield Case("slots", {"from_anchor"}, target, changed(drafter, **slot))
    yield Case("block of 7", {"block_size"}, target, changed(drafter, block_size=7), True)
    yield Case("rope", {"rope"}, target, changed(drafter, rope=OTHER_ROPE), True)
    yield Case("float16", {"dtype"}, target, changed(drafter, half=True))
    yield Case("target's adapter", {"target_adapter"}, adapted(target, seed), drafter)
    yield Case("drafter's adapter", {"drafter_adapter"}, target, adapted(drafter, seed))
    taps, slots, long = changed(drafter, **below), changed(drafter, **slot), changed(drafter, block_size=7)
    rope, half = changed(drafter, rope=OTHER_ROPE), changed(drafter, half=True)
    for name, causes, broken in (
        ("taps, slots", {"taps": taps, "from_anchor": slots}, changed(slots, **below)),
        ("slots, block of 7", {"from_anchor": slots, "block_size": long}, changed(slots, block_size=7)),
        ("taps, rope", {"taps": taps, "rope": rope}, changed(rope, **below)),
        ("taps, float16", {"taps": taps, "dtype": half}, changed(drafter, half=True, **below)),
    ):
        # Of taps and rope each may do no harm, and so may both.
        yield Case(name, set(causes), target, broken, name == "taps, rope", causes, target)
    adapter = adapted(target, seed)
    yield Case("adapter, taps", {"target_adapter", "taps"}, adapter, changed(drafter, **below), False, {"taps": taps},
               target)  # fmt: skip


def chat_cases(seed):
    """A drafter that knows the text behind a chat template, with prompts of either form."""
    target, tokenizer = make_target(seed, num_steps=250, text_of=chat_language), chat_tokenizer()
    drafter = trained(target, seed, has_header=True)
    slots = changed(drafter, sample_from_anchor=False)
    yield Case("fits, template", set(), target, drafter, tokenizer=tokenizer)
    yield Case("raw prompts", {"template"}, target, drafter, tokenizer=tokenizer, is_raw=True)
    yield Case("raw prompts, slots", {"template", "from_anchor"}, target, slots, tokenizer=tokenizer, is_raw=True)


def judge(case, seed, whole):
    """A verdict on a verdict, and the diagnosis.

    `right`, `part` where one of two causes is named, `harmless` where every cause that is not named costs less than a
    sixth of the drafts which stand with the drafter as it was trained (`whole`), or `wrong`.
    """
    if case.tokenizer is None:
        found = diagnose(case.target, case.drafter, prompts=prompts(seed))
    else:
        words = [f"w{rows[0]}" for rows in prompts(seed)]
        found = diagnose(case.target, case.drafter, case.tokenizer, words, template=not case.is_raw)
    causes = set(found.causes)
    if causes == case.causes:
        return "right", found
    if causes and causes < case.causes:
        (missing,) = case.causes - causes
        rest = case.alone.get(missing)
        is_harmless = rest is not None and costs_little(case.plain, rest, whole, seed)
        return ("harmless" if is_harmless else "part"), found
    is_harmless = not causes and case.may_be_harmless and costs_little(case.target, case.drafter, whole, seed)
    return ("harmless" if is_harmless else "wrong"), found


def costs_little(target, broken, whole, seed):
    """Whether a broken drafter loses less than a sixth of the whole one's drafts."""
    texts = Texts(target, prompts(seed))
    trials = [try_reading(one.bind(target, check_name=False), Reading(), texts) for one in (broken, whole)]
    num_slots = min(trial.num_slots for trial in trials)
    broken, fitting = (trial.accepted(num_slots).mean() for trial in trials)
    return broken * 1.2 > fitting


def count(seeds, print_line=lambda line: None):
    """Verdicts by case over seeds."""
    counts: dict[str, Counter] = {}
    for seed in seeds:
        target = make_target(seed)
        drafter = trained(target, seed)
        for case in (*chat_cases(seed), *cases(target, drafter, seed)):
            verdict, found = judge(case, seed, drafter)
            counts.setdefault(case.name, Counter())[verdict] += 1
            first = found.evidence[0]
            told = ", ".join(
                f"{one['reading']}: {one['slot_1']:.2f} {one['accepted']:.2f}" for one in found.evidence[1:3]
            )
            print_line(f"{seed} {case.name}: {verdict} {sorted(found.causes)}; as is {first['slot_1']:.2f} "
                       f"{first['accepted']:.2f}; {told}")  # fmt: skip
    return counts


if __name__ == "__main__":
    torch.set_num_threads(1)
    start, num = int(sys.argv[1]), int(sys.argv[2])
    found = count(range(start, start + num), lambda line: print(line, flush=True))
    for name, verdicts in found.items():
        print(f"{name:20} {dict(verdicts)}")
