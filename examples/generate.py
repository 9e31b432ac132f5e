"""Answer prompts with a drafter, in one batch, and tell what was accepted.

    python examples/generate.py "Why is the sky blue?" "Name three rivers."
    python examples/generate.py "Why is the sky blue?" --target org/Model --drafter org/Model-drafter --temperature 0.7
    accelerate launch --config_file examples/accelerate/cpu.yaml examples/generate.py "One." "Two." "Three."

Several processes share the prompts out; each has the whole target.
"""

import argparse

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from dspark_hf import AutoDrafter
from dspark_hf.evaluation import encode_prompts
from dspark_hf.hub.embedded import resolve_drafter, resolve_target
from dspark_hf.processes import end_in_order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="+", help="What to ask.")
    parser.add_argument("--target", default="embedded", help="A repository, a folder, or `embedded`.")
    parser.add_argument("--drafter", default="embedded", help="A repository, a folder, or `embedded`.")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16 or float16.")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="Longest answer, in tokens.")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 decodes greedily.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the sampling.")
    options = parser.parse_args()

    # Without a GPU accelerate sees several processes only where it is told so.
    processes = PartialState(cpu=not torch.accelerator.is_available())
    set_seed(options.seed)
    path = resolve_target(options.target)
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    target = AutoModelForCausalLM.from_pretrained(path, dtype=options.dtype).to(processes.device)
    drafter = AutoDrafter.from_pretrained(resolve_drafter(options.drafter), dtype=options.dtype).to(processes.device)
    sampling = {"do_sample": options.temperature != 0}
    if options.temperature:
        sampling["temperature"] = options.temperature
    answers = []
    with processes.split_between_processes(options.prompts) as prompts:
        if prompts:
            encoded = encode_prompts(prompts, tokenizer)
            inputs = {name: tensor.to(processes.device) for name, tensor in encoded.items()}
            out = target.generate(**inputs, assistant_model=drafter, max_new_tokens=options.max_new_tokens, **sampling)
            texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            answers = list(zip(prompts, texts, strict=True))
            print(drafter.last_stats.summary())
    for prompt, text in gather_object(answers):
        if processes.is_main_process:
            print(f"\n> {prompt}\n{text}")


if __name__ == "__main__":
    with end_in_order():
        main()
