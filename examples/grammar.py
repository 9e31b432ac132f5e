"""Answers in JSON of a given shape: a grammar engine masks the target's tokens, and the drafts too.

    python examples/grammar.py "Describe Lisbon." "Describe Nairobi."
    python examples/grammar.py "Describe Lisbon." --schema shape.json --target org/Model --drafter org/Model-drafter

The engine is xgrammar (`pip install xgrammar`). Each prompt is answered twice: with xgrammar's own processor, which
keeps a state and so sees no draft, and with `GrammarMask` below, which drafts go through. The answers are the same,
but more drafts stand. Prompts are answered one by one: there is nothing to `accelerate launch`.
"""

import argparse
import json
from pathlib import Path

import xgrammar
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor
from xgrammar.contrib.hf import LogitsProcessor as StatefulMask

from dspark_hf import AutoDrafter, SpeculationConfig, SpeculationStats
from dspark_hf.evaluation import encode_prompts
from dspark_hf.hub.embedded import resolve_drafter, resolve_target

CITIES = "Lisbon, Nairobi, Kyoto, Lima, Vienna, Cairo, Oslo, Toronto, Mumbai, Sydney, Athens, Seoul".split(", ")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "continent": {"enum": ["Africa", "Asia", "Europe", "North America", "South America", "Oceania"]},
        "is_capital": {"type": "boolean"},
        "climate": {"enum": ["cold", "mild", "hot"]},
        "known_for": {"type": "string", "maxLength": 80},
    },
    "required": ["name", "continent", "is_capital", "climate", "known_for"],
}


class GrammarMask(LogitsProcessor):
    """Bans what a grammar does not allow next.

    Each row's matcher is put back to where the row parts from what was read before, so that the outcome depends on the
    prefix alone, whatever was tried in between.

    Args:
        grammar (`xgrammar.CompiledGrammar`): The grammar.
        prompt_len (`int`): Columns of the prompt; the grammar speaks of what stands behind them.
    """

    is_stateless = True

    def __init__(self, grammar: xgrammar.CompiledGrammar, prompt_len: int):
        self.grammar, self.prompt_len = grammar, prompt_len
        self.bitmask = xgrammar.allocate_token_bitmask(1, grammar.tokenizer_info.vocab_size)
        self.matchers, self.read = [], []

    def __call__(self, input_ids, scores):
        for row, answer in enumerate(input_ids[:, self.prompt_len :].tolist()):
            if row == len(self.matchers):
                self.matchers.append(xgrammar.GrammarMatcher(self.grammar))
                self.read.append([])
            if self.follow(self.matchers[row], self.read[row], answer):
                self.matchers[row].fill_next_token_bitmask(self.bitmask)
                xgrammar.apply_token_bitmask_inplace(scores[row : row + 1], self.bitmask.to(scores.device))
        return scores

    def follow(self, matcher, read, answer):
        """Bring a matcher behind an answer; False where there is no way, as behind a draft that will be rejected."""
        same = 0
        while same < min(len(read), len(answer)) and read[same] == answer[same]:
            same += 1
        if same < len(read):
            matcher.rollback(len(read) - same)
            del read[same:]
        for token in answer[same:]:
            if matcher.is_terminated() or not matcher.accept_token(token):
                return False
            read.append(token)
        return not matcher.is_terminated()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", help="What to ask; a dozen cities if left out.")
    parser.add_argument("--schema", type=Path, help="A JSON schema; that of a city if left out.")
    parser.add_argument("--target", default="embedded", help="A repository, a folder, or `embedded`.")
    parser.add_argument("--drafter", default="embedded", help="A repository, a folder, or `embedded`.")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16 or float16.")
    parser.add_argument("--max_new_tokens", type=int, default=128, help="Longest answer, in tokens.")
    options = parser.parse_args()

    path = resolve_target(options.target)
    tokenizer = AutoTokenizer.from_pretrained(path)
    target = AutoModelForCausalLM.from_pretrained(path, dtype=options.dtype)
    drafter = AutoDrafter.from_pretrained(resolve_drafter(options.drafter), dtype=options.dtype)
    tokens = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=target.config.vocab_size)
    schema = json.dumps(SCHEMA) if options.schema is None else options.schema.read_text(encoding="utf-8")
    grammar = xgrammar.GrammarCompiler(tokens).compile_json_schema(schema, any_whitespace=False)
    # The drafter by itself: lookup knows no grammar, and would draft much of such text.
    alone = SpeculationConfig(policy="fixed", prompt_lookup=False)
    stats = {"drafts not masked": SpeculationStats(), "drafts masked": SpeculationStats()}
    for prompt in options.prompts or [f"Describe {city} in JSON." for city in CITIES]:
        inputs = encode_prompts([prompt], tokenizer)
        prompt_len = inputs["input_ids"].shape[1]
        answers = []
        for name, mask in zip(stats, (StatefulMask(grammar), GrammarMask(grammar, prompt_len)), strict=True):
            out = target.generate(
                **inputs, assistant_model=drafter, speculation=alone, logits_processor=[mask], do_sample=False,
                max_new_tokens=options.max_new_tokens,
            )  # fmt: skip
            stats[name].add(drafter.last_stats)
            answers.append(tokenizer.decode(out[0, prompt_len:], skip_special_tokens=True))
        print(f"> {prompt}\n{answers[1]}" + ("" if answers[0] == answers[1] else f"\nnot masked: {answers[0]}"))
    for name, made in stats.items():
        print(f"\n{name}: {made.summary()}")


if __name__ == "__main__":
    main()
