"""Questions about long texts, READMEs of installed packages, as prompts for training text.

    python benchmarks/write_long_prompts.py --out long_prompts.jsonl --num_prompts 120 --lengths 1024 4096
    dspark regenerate --prompts long_prompts.jsonl --out long.jsonl --batch-size 4 --max-new-tokens 96

Lengths are spread evenly over their logarithm, as far as a README goes. This project's own, whose pages
`measure_context.py` asks about, is left out.
"""

import argparse
import importlib.metadata
import json
import random
from pathlib import Path

from transformers import AutoTokenizer

from dspark_hf.hub.embedded import resolve_target

QUESTIONS = [
    "Here is a text.\n\n{}\n\nWrite down in your own words what it is about.",
    "{}\n\nSummarize the text above in a few sentences.",
    "Read this and answer below.\n\n{}\n\nWhat is it for, and who would use it?",
    "{}\n\nList the most important points of this text.",
]


def readmes() -> dict[str, str]:
    """The long ones, by package."""
    found = {}
    for package in importlib.metadata.distributions():
        text = package.metadata.get_payload() or ""
        if package.metadata["Name"] != "dspark_hf" and len(text) > 6_000:
            found[package.metadata["Name"]] = text
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--target", default="embedded", help="A repository, a folder, or `embedded`; its tokenizer counts."
    )
    parser.add_argument("--out", type=Path, required=True, help="The JSONL file to write.")
    parser.add_argument("--num_prompts", type=int, default=120)
    parser.add_argument("--lengths", type=int, nargs=2, default=[1024, 4096], help="In tokens.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(resolve_target(options.target))
    draw = random.Random(options.seed)
    texts = {name: tokenizer(text, add_special_tokens=False)["input_ids"] for name, text in sorted(readmes().items())}
    if not texts:
        raise SystemExit("No package that is installed here has a README of 6,000 letters. Install some, as torch.")
    shortest, longest = options.lengths
    with options.out.open("w", encoding="utf-8") as file:
        for number in range(options.num_prompts):
            name = draw.choice(sorted(texts))
            size = round(shortest * (longest / shortest) ** draw.random())
            start = draw.randrange(max(1, len(texts[name]) - size))
            text = tokenizer.decode(texts[name][start : start + size])
            turn = QUESTIONS[number % len(QUESTIONS)].format(text)
            file.write(json.dumps({"id": f"{name}-{number}", "turns": [turn]}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
