"""Prompts of three kinds that a small target does not invent well itself, for `dspark regenerate --prompts`.

    python examples/task_prompts/write.py problems --number 600 --seed 1 --out problems.jsonl
    python examples/task_prompts/write.py functions --number 600 --seed 2 --out functions.jsonl
    python examples/task_prompts/write.py chats --number 600 --seed 3 --out chats.jsonl

Word problems are put together from word_problems.txt. Functions are those of functions.py without their bodies; most
show some calls with what the function really returns, which answers tend to repeat. Chats have two user turns, the
second about the answer to the first, from chats.txt.
"""

import argparse
import inspect
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import functions

PROBLEMS = Path(__file__).with_name("word_problems.txt")
CHATS = Path(__file__).with_name("chats.txt")
FUNCTIONS = [f for _, f in inspect.getmembers(functions, inspect.isfunction)]
PEOPLE = {
    "she": "Anna Carla Ella Grace Ivy Kate Mia Olivia Rosa Wendy Priya Lucia Mei Fatima Julia Nora".split(),
    "he": "Ben David Felix Henry Jack Leo Noah Paul Sam Victor Ahmed Kenji Omar Ivan Tom Mateo".split(),
}
HIS = {"she": "her", "he": "his"}
THINGS = (
    "marbles stickers apples cookies pencils books stamps seashells balloons cupcakes oranges coins flowers candles "
    "eggs bottles shirts postcards beads muffins tomatoes tickets chairs cards"
).split()
WORDS = (
    "apple river stone cloud green window paper silver garden music yellow table summer bridge happy little forest "
    "candle ocean winter lamp story bread mouse train island quick brown lazy orange market doctor listen silent"
).split()
# What is said behind a problem, mostly nothing, and before a function.
ENDINGS = [
    "", "", "", "", "\nThink step by step.", " Let's solve this step by step.", "\nPlease show your work.",
    "\nExplain each step and put the result in \\boxed{}.",
    "\nReason step by step, then give the final answer in \\boxed{}.",
    "\nSolve it step by step and write the final answer in \\boxed{}.",
]  # fmt: skip
BEGINNINGS = [
    "", "Complete this function.\n", "Please finish the code below so that it does what its docstring says.\n",
    "Implement this in Python:\n", "Solve this programming problem; the examples in the docstring must hold:\n",
    "Write the body of the function.\n", "Here is a function without a body. Please fill it in.\n",
    "Can you write this function?\n",
]  # fmt: skip
# Some random value for each annotation of functions.py.
VALUES: dict[str, Callable[[random.Random], object]] = {
    "int": lambda draw: draw.randint(1, 60),
    "str": lambda draw: " ".join(draw.choices(WORDS, k=draw.randint(1, 3))),
    "list[int]": lambda draw: [draw.randint(0, 50) for _ in range(draw.randint(3, 7))],
    "list[str]": lambda draw: draw.choices(WORDS, k=draw.randint(2, 5)),
    "list[list[int]]": lambda draw: [[draw.randint(0, 9) for _ in range(3)] for _ in range(draw.randint(1, 3))],
    "dict[str, int]": lambda draw: {word: draw.randint(1, 20) for word in draw.sample(WORDS, k=draw.randint(1, 3))},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=tuple(MAKERS))
    parser.add_argument("--number", type=int, required=True, help="Prompts, all different.")
    parser.add_argument("--seed", type=int, default=0, help="The same seed makes the same prompts.")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write.")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    prompts: dict[str, tuple[str, ...]] = {}
    while len(prompts) < options.number:
        turns = MAKERS[options.kind](draw)
        prompts.setdefault(turns[0], turns)
    lines = [
        json.dumps({"messages": [{"role": "user", "content": turn} for turn in turns]}) + "\n"
        for turns in prompts.values()
    ]
    options.out.write_text("".join(lines), encoding="utf-8")


def lines_of(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def word_problem(draw: random.Random) -> tuple[str]:
    he = draw.choice(list(PEOPLE))
    first = draw.choice(PEOPLE[he])
    second, third = draw.sample([name for names in PEOPLE.values() for name in names if name != first], k=2)
    known = {"A": first, "B": second, "C": third, "he": he, "his": HIS[he], "things": draw.choice(THINGS)}
    known |= {"He": he.capitalize(), "His": HIS[he].capitalize()}

    return (filled(draw.choice(lines_of(PROBLEMS)), draw, known) + draw.choice(ENDINGS),)


def filled(text: str, draw: random.Random, known: dict[str, str]) -> str:
    """A template with something for each of its braces, from the innermost on."""

    def fill(brace: re.Match) -> str:
        if (inside := brace[1]) in known:
            return known[inside]
        if span := re.fullmatch(r"(\d+)-(\d+)", inside):
            return str(draw.randint(int(span[1]), int(span[2])))
        one = draw.choice(inside.split("|"))
        return f"{{{one}}}" if one in known else one

    num_filled = 1
    while num_filled:
        text, num_filled = re.subn(r"\{([^{}]*)\}", fill, text)
    return re.sub(r"\b([Aa]) (?=accountant|architect|electrician)", r"\1n ", text)


def chat(draw: random.Random) -> tuple[str, str]:
    """A request of some kind, each as likely, and what is asked about the answer."""
    pools, kinds = {}, {}
    for line in lines_of(CHATS):
        if line.startswith("@"):
            name, _, parts = line.partition(" ")
            pools[name] = f"{{{parts}}}"
        else:
            kind, _, text = line.partition(": ")
            kinds.setdefault(kind, []).append(text)
    kind = draw.choice(list(kinds))
    first, _, second = draw.choice(kinds[kind]).partition(" >> ")
    return filled(first, draw, pools).strip(), filled(second or pools[f"@next-{kind}"], draw, pools).strip()


def function_to_write(draw: random.Random) -> tuple[str]:
    function = draw.choice(FUNCTIONS)
    signature = inspect.signature(function)
    typed, quotes = draw.random() < 0.65, draw.choice(['"""', '"""', '"""', "'''"])
    head = str(signature) if typed else f"({', '.join(signature.parameters)})"
    doc = [draw.choice(["", " ", "\n    "]) + inspect.getdoc(function)]
    form = draw.choice(
        ["    >>> {call}\n    {result!r}"] * 4 + ["    {call} == {result!r}", "    Example: {call} => {result!r}", ""]
    )
    for call, result in calls(function, draw, draw.randint(1, 4) if form else 0):
        doc.append(form.format(call=call, result=result))
    stub = f"def {function.__name__}{head}:\n    {quotes}" + "\n".join(doc) + f"\n    {quotes}\n"
    beginning = draw.choice(BEGINNINGS)
    return (beginning + (f"```python\n{stub}\n```" if beginning and draw.random() < 0.7 else stub),)


def calls(function: Callable, draw: random.Random, number: int) -> list[tuple[str, object]]:
    """Calls with random arguments, and what they return; those that fail are left out."""
    made = []
    for _ in range(number):
        arguments = [
            VALUES[inspect.formatannotation(p.annotation)](draw)
            for p in inspect.signature(function).parameters.values()
        ]
        try:
            made.append((f"{function.__name__}({', '.join(map(repr, arguments))})", function(*arguments)))
        except (IndexError, ValueError):
            continue
    return made


MAKERS: dict[str, Callable[[random.Random], tuple[str, ...]]] = {
    "problems": word_problem, "functions": function_to_write, "chats": chat
}  # fmt: skip

if __name__ == "__main__":
    main()
