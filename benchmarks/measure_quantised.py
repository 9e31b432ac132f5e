"""A quantised target with the drafter of the whole one: tau, and answers that equal plain ones of the same target.

    python benchmarks/measure_quantised.py
    python benchmarks/measure_quantised.py --forms none "torchao int8" --num_prompts 4

Greedy, one prompt at a time, the drafter alone. Needs torchao and bitsandbytes for their forms.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from dspark_hf import AutoDrafter, SpeculationConfig, SpeculationStats
from dspark_hf.evaluation import encode_prompts
from dspark_hf.hub.embedded import resolve_drafter, resolve_target

PROMPTS = [
    "Give me three tips for learning a new language.",
    "Why is the sky blue?",
    "Write a short email that thanks a colleague for their help.",
    "Write a Python function that adds two numbers.",
    "What is a volcano?",
    "Tom has 3 boxes with 12 pencils each and gives 7 away. How many are left?",
    "Explain what a bank does.",
    "Write a poem about autumn.",
]


def torchao_int8():
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


FORMS = {
    "none": lambda: None,
    "torchao int8": torchao_int8,
    "bitsandbytes int8": lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
    "bitsandbytes int8, threshold 6": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS, help="Quantisations.")
    parser.add_argument("--target", default="embedded", help="A repository, a folder, or `embedded`.")
    parser.add_argument("--drafter", default="embedded", help="A repository, a folder, or `embedded`.")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16.")
    parser.add_argument("--num_prompts", type=int, default=len(PROMPTS), help="At most 8.")
    parser.add_argument("--max_new_tokens", type=int, default=96, help="Longest answer, in tokens.")
    options = parser.parse_args()

    path = resolve_target(options.target)
    tokenizer = AutoTokenizer.from_pretrained(path)
    drafter = AutoDrafter.from_pretrained(resolve_drafter(options.drafter), dtype=options.dtype)
    alone = SpeculationConfig(policy="fixed", prompt_lookup=False)
    settings = {"do_sample": False, "max_new_tokens": options.max_new_tokens}
    for form in options.forms:
        given = {} if form == "none" else {"quantization_config": FORMS[form]()}
        target = AutoModelForCausalLM.from_pretrained(path, dtype=options.dtype, **given).eval()
        stats, num_same = SpeculationStats(), 0
        prompts = PROMPTS[: options.num_prompts]
        for prompt in prompts:
            inputs = {name: ids.to(target.device) for name, ids in encode_prompts([prompt], tokenizer).items()}
            out = target.generate(**inputs, assistant_model=drafter, speculation=alone, **settings)
            num_same += torch.equal(out, target.generate(**inputs, speculation=False, **settings))
            stats.add(drafter.last_stats)
        print(f"{form:31} tau {stats.tau:.2f}, equal to plain: {num_same} of {len(prompts)}", flush=True)


if __name__ == "__main__":
    main()
