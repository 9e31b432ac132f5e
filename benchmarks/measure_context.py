"""Acceptance and speed by the length of the prompt: tau, slot 1, and how many times as fast as plain `generate()`.

    python benchmarks/measure_context.py --num_prompts 4
    python benchmarks/measure_context.py --lengths 512 8192 --drafter short=embedded --drafter long=runs/long
    python benchmarks/measure_context.py --tau_only --window 256 --json rows.json --picture context.svg

A prompt is a question about a text, cut so that all of it has as many tokens as asked for; by default the text is this
project's own pages. `decoding` leaves the prompt's pass out of both sides. Drafters draft every slot, without lookup.
"""

import argparse
import copy
import json
import statistics
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from dspark_hf import AutoDrafter, SpeculationConfig
from dspark_hf.data.chat import prompt_ids
from dspark_hf.evaluation import DecodingSettings, generate_plain, generate_speculative
from dspark_hf.evaluation.tasks.prompts import pad_prompts
from dspark_hf.hub.embedded import resolve_drafter, resolve_target

PAGES = sorted((Path(__file__).resolve().parents[1] / "docs").glob("*.md"))
QUESTION = "Here is a text.\n\n{}\n\nWrite down in your own words what it is about."
ALL_SLOTS = {"policy": "fixed", "prompt_lookup": False}


def prompt_of(tokenizer, text: str, start: int, length: int) -> list[int]:
    """A prompt of exactly so many tokens, around the text from a place on."""
    frame = len(prompt_ids(tokenizer, QUESTION.format("")))
    words = tokenizer(text, add_special_tokens=False)["input_ids"]
    while len(words) < start + length:
        words = words + words
    # Decoded and encoded again a piece of text may have other tokens, so the cut is moved until the length is right.
    size = length - frame
    for _ in range(20):
        ids = prompt_ids(tokenizer, QUESTION.format(tokenizer.decode(words[start : start + size])))
        if len(ids) == length:
            return ids
        size += length - len(ids)
    # The frame's end stays whole.
    surplus = len(ids) - length
    return ids[: length // 2] + ids[length // 2 + surplus :] if surplus > 0 else ids


def with_window(drafter, window: int):
    """The same weights in layers that look at the last tokens only."""
    config = copy.deepcopy(drafter.config)
    config.decoder_config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    config.decoder_config.sliding_window = window
    config.is_causal = False  # as in its layers before
    sliding = type(drafter)(config).to(drafter.dtype).eval()
    sliding.load_state_dict(drafter.state_dict())
    return sliding


def measure(target, drafters, tokenizer, text: str, length: int, options) -> list[dict]:
    """A row for each drafter, over prompts of one length."""
    settings = DecodingSettings(options.max_new_tokens)
    stats = {name: [] for name in drafters}
    ratios = {name: {"whole": [], "decoding": []} for name in drafters}
    for number in range(options.num_prompts):
        inputs = pad_prompts([prompt_of(tokenizer, text, 997 * number, length)], tokenizer)
        if not options.tau_only:
            plain = generate_plain(target, inputs, settings)
            first = generate_plain(target, inputs, DecodingSettings(1))
        for name, drafter in drafters.items():
            run = generate_speculative(target, drafter, inputs, settings, SpeculationConfig(**ALL_SLOTS))
            stats[name].append(run.stats)
            if not options.tau_only:
                decoding = (plain.seconds - first.seconds) / (run.seconds - run.stats.prefill_seconds)
                ratios[name]["whole"].append(plain.seconds / run.seconds)
                ratios[name]["decoding"].append(decoding)
    rows = []
    for name, made in stats.items():
        emitted = [count for one in made for count in one.emitted_lens]
        judged = [one.slot_rates[0] for one in made if one.slot_rates]
        row = {
            "length": length,
            "drafter": name,
            "tau": sum(emitted) / len(emitted),
            # 95% of the mean over rounds.
            "tau_error": 1.96 * statistics.pstdev(emitted) / len(emitted) ** 0.5,
            "slot_1": statistics.mean(judged) if judged else 0.0,
        }
        rows.append(row | {what: statistics.median(values) for what, values in ratios[name].items() if values})
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """tau against the length, one line a drafter, with the interval of the mean over rounds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(row["drafter"] for row in rows):
        own = [row for row in rows if row["drafter"] == name]
        lengths, taus = [row["length"] for row in own], [row["tau"] for row in own]
        axes.errorbar(lengths, taus, yerr=[row["tau_error"] for row in own], marker="o", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.axhline(1, color="grey", linestyle="--", linewidth=1)
    axes.set(xlabel="tokens of the prompt", ylabel="tau (dashed: plain)", ylim=(0.9, None))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="embedded", help="A repository, a folder, or `embedded`.")
    parser.add_argument("--drafter", action="append", help="A drafter, or NAME=PLACE; may be repeated.")
    parser.add_argument("--window", type=int, help="Also each drafter with layers that look at so many tokens only.")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192], help="Tokens.")
    parser.add_argument("--num_prompts", type=int, default=4, help="Prompts of each length.")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="Tokens of each answer.")
    parser.add_argument("--text", type=Path, help="A file of text to ask about.")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16 or float16.")
    parser.add_argument("--tau_only", action="store_true", help="Leave plain generate() out, and with it the speed.")
    parser.add_argument("--json", type=Path, help="Also write the rows to this file.")
    parser.add_argument("--picture", type=Path, help="Also draw tau against the length, as SVG or PNG.")
    options = parser.parse_args()
    path = resolve_target(options.target)
    tokenizer = AutoTokenizer.from_pretrained(path)
    target = AutoModelForCausalLM.from_pretrained(path, dtype=options.dtype).eval()
    # Every answer is as long as asked for.
    target.generation_config.eos_token_id = None
    drafters = {}
    for place in options.drafter or ["embedded"]:
        name = place.partition("=")[0]
        loaded = AutoDrafter.from_pretrained(resolve_drafter(place.rpartition("=")[2]), dtype=target.dtype)
        drafters[name] = loaded.bind(target)
        if options.window is not None:
            drafters[f"{name}, {options.window}"] = with_window(loaded, options.window).bind(target)
    pages = [options.text] if options.text else PAGES
    text = "\n\n".join(page.read_text(encoding="utf-8") for page in pages)
    rows = []
    print("length  drafter       tau   slot 1" + ("" if options.tau_only else "   whole   decoding"))
    for length in options.lengths:
        for row in measure(target, drafters, tokenizer, text, length, options):
            rows.append(row)
            line = f"{row['length']:6}  {row['drafter']:12} {row['tau']:5.2f}   {row['slot_1']:6.2f}"
            if not options.tau_only:
                line += f"   {row['whole']:5.2f}   {row['decoding']:8.2f}"
            print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
