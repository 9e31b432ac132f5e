"""Write docs/targets.md: how every causal language model of transformers does as a target, found by running each.

    python benchmarks/list_targets.py > docs/targets.md
    python benchmarks/list_targets.py llama bamba        # some, to look at

Each is a tiny random model in float64. Prompts of different lengths are answered with a drafter beside it that is
often right: in one batch (with lookup, too), in static rounds, and in continuous batching. All is compared with plain
`generate()`; the exit status is 1 if a target says something else. A column more is a line in COLUMNS.
"""

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from tiny_models import VOCAB, tiny_model
from transformers import ContinuousBatchingConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from dspark_hf import DSparkModel, PromptLookup, SpeculationConfig
from dspark_hf.generation.decode import SpeculativeLoop

NEW_TOKENS, RANK, WRONG = 12, 32, "WRONG"
# What a reason comes down to, by a part of it.
FEW_WORDS = {
    "holds more than keys and values": "its cache holds more than keys and values",
    "another attention than sdpa or eager": "its attention is not transformers' interface",
    "asks transformers' attention interface": "not every layer asks transformers' interface",
    "told apart by their positions": "its rows cannot be told apart by their positions",
    "takes no attention_mask": "it takes no attention mask",
    "cache that rejected tokens can be taken out of": "rejected tokens cannot be taken out of its cache",
    "Invalid layer type": "transformers does not batch its layers",
}


@dataclass
class Found:
    """What was found of a model type.

    Attributes:
        name (`str`): The model type.
        rows (`str`): How rows of a batch grow: `ragged`, `in step`, `in step, prompts of one length`, `batch 1`,
            `refused`, or `not tried`.
        why (`str`): Of the last two, why.
        static (`str`): Whether static rounds say what plain `generate()` says, or why there are none.
        batching (`str`): The same of continuous batching.
    """

    name: str
    rows: str
    why: str = ""
    static: str = ""
    batching: str = ""


# Titles, and what stands in them.
COLUMNS: list[tuple[str, Callable[[Found], str]]] = [
    ("model type", lambda found: f"`{found.name}`"),
    ("rows of a batch", lambda found: found.rows),
    ("static rounds", lambda found: found.static),
    ("continuous batching", lambda found: found.batching),
    ("why refused", lambda found: found.why),
]


def try_target(model_type: str) -> Found:
    """Run a tiny model of a type with a drafter, and say how."""
    try:
        model = tiny_model(model_type)
        generate(model, prompts(model, uneven=False)[:1])
    except Exception as error:
        return Found(model_type, "not tried", f"no tiny model of it generates: {_first_line(error)}")
    kinds = (("", True, 2), ("in step, prompts of one length", False, 2), ("batch 1", False, 1))
    for rows, uneven, num_rows in kinds:
        ids = prompts(model, uneven)[:num_rows]
        try:
            expected = generate(model, ids)
        except Exception:
            continue  # plain generate() cannot, either
        try:
            drafter = knowing_drafter(model, expected[:, ids.shape[1] - 1 :])
            lookup = SpeculationConfig(prompt_lookup=PromptLookup(), policy="fixed")
            with watched() as loops:
                drafted = generate(model, ids, assistant_model=drafter, speculation=lookup)
        except ValueError as error:
            why = _few_words(error)
            continue
        except Exception as error:
            return Found(model_type, "refused", f"without a word: {type(error).__name__}: {_first_line(error)}")
        if not torch.equal(drafted, expected):
            return Found(model_type, WRONG, "other tokens than plain generate()")
        rows = rows or ("in step" if loops[-1].transcript.in_step else "ragged")
        static = try_static(model, drafter, ids, expected)
        return Found(model_type, rows, "", static, try_batching(model, drafter))
    return Found(model_type, "refused", why)


def try_static(model: PreTrainedModel, drafter: DSparkModel, ids: torch.Tensor, expected: torch.Tensor) -> str:
    """Whether static rounds say what is expected, or why there are none."""
    options = {"speculation": SpeculationConfig(policy="fixed"), "cache_implementation": "static"}
    try:
        drafted = generate(model, ids, assistant_model=drafter, **options)
    except ValueError as error:
        return f"no: {_few_words(error)}"
    except Exception as error:
        return f"{WRONG}: {type(error).__name__}: {_first_line(error)}"
    if not torch.equal(drafted, expected):
        return f"{WRONG}: other tokens than plain generate()"
    stats = drafter.last_stats
    return "yes" if stats.round_kind == "static" else f"no: {stats.why_ragged}"


def try_batching(model: PreTrainedModel, drafter: DSparkModel) -> str:
    """Whether requests of a batch that changes say what they say alone, or why there is none."""
    rows = prompts(model, uneven=False).tolist()
    requests = [rows[0], rows[1][5:], rows[0][:3]]
    alone = [generate(model, torch.tensor([one]))[0, len(one) :].tolist() for one in requests]
    stock = _batched(model, requests)
    drafted = _batched(model, requests, assistant_model=drafter, speculation=SpeculationConfig(policy="fixed"))
    if drafted == alone:
        return "yes"
    if isinstance(drafted, ValueError):
        return f"no: {_few_words(drafted)}"
    if not isinstance(drafted, Exception):
        return (
            f"{WRONG}: other tokens than plain generate(), {'as' if drafted == stock else 'unlike'} transformers' own"
        )
    is_stock = isinstance(stock, Exception)
    return "no: transformers' own batching fails, too" if is_stock else f"{WRONG}: {_first_line(drafted)}"


def _batched(model: PreTrainedModel, requests: list[list[int]], **options: Any) -> list[list[int]] | Exception:
    """The answers of a batch, or what stood in their way."""
    config = copy.deepcopy(model.generation_config)
    config.update(do_sample=False, eos_token_id=-1)
    small = ContinuousBatchingConfig(page_size=8, num_blocks=96, max_batch_tokens=48, max_memory_percent=0.5)
    try:
        with redirect_stdout(sys.stderr):
            results = model.generate_batch(requests, config, small, max_new_tokens=NEW_TOKENS, **options)
    except Exception as error:
        return error
    errors = [one.error for one in results.values() if one.error]
    if errors or len(results) < len(requests):
        return RuntimeError(errors[0] if errors else "requests are lost")
    return [one.generated_tokens for one in results.values()]


def prompts(model: PreTrainedModel, uneven: bool) -> torch.Tensor:
    """Two rows of ids, the second shorter by its padding at the left if asked for."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCAB, (2, 9), generator=generator).repeat(1, 2)[:, :14]
    if uneven:
        ids[1, :5] = 0
    return ids


def generate(model: PreTrainedModel, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """Greedy tokens behind prompts that are padded with 0."""
    mask = (ids != 0).long()
    return model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, **options)


@torch.no_grad()
def knowing_drafter(model: PreTrainedModel, texts: torch.Tensor) -> DSparkModel:
    """A random drafter whose sequential head knows which token follows which in these texts, two times of three."""
    layers = model.config.get_text_config().num_hidden_layers
    torch.manual_seed(0)
    drafter = DSparkModel.from_target(
        model, family="deepseek_v4" if model.config.model_type == "deepseek_v4" else "qwen3", num_hidden_layers=1,
        target_layer_ids=[0] if layers < 4 else [0, 2], block_size=4, markov_rank=RANK,
    )  # fmt: skip
    head, places = drafter.markov_head, {}
    head.markov_w1.weight.zero_()
    head.markov_w2.weight.zero_()
    for row in texts.tolist():
        for step, (token, following) in enumerate(zip(row, row[1:], strict=False)):
            place = places.setdefault(token, len(places))
            head.markov_w1.weight[token, place] = 1.0
            head.markov_w2.weight[following, place] = 1000.0 if step % 3 else 0.0
    return drafter.eval()


@contextmanager
def watched() -> Iterator[list[SpeculativeLoop]]:
    """The loops that run inside."""
    loops, run = [], SpeculativeLoop.run

    def watch(loop: SpeculativeLoop) -> Any:
        loops.append(loop)
        return run(loop)

    SpeculativeLoop.run = watch
    try:
        yield loops
    finally:
        SpeculativeLoop.run = run


def _few_words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return next((words for needle, words in FEW_WORDS.items() if needle in text), _first_line(error).split(": ")[0])


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()).split(". ")[0].split("; ")[0]
    return text.replace("|", "/")[:160]


HEAD = """# Targets

Every causal language model type of transformers {version}, found by running a tiny random model of each with a
drafter, against plain `generate()`. *Ragged* rows accept as many drafts as stand in each; rows *in step* go at the
pace of the slowest ([batches](concepts.md#batches)). *Not tried* says that no tiny model was made, nothing about a
real one. Types whose models see images are made without them.

*Static rounds* are those of `cache_implementation="static"`, *continuous batching* is `generate_batch`. `yes` says
that their tokens are those of plain `generate()`, with drafts beside them of which some are right and some are not.

`python benchmarks/list_targets.py > docs/targets.md` writes this page.
"""


def table(found: list[Found]) -> str:
    """The findings as a table."""
    lines = ["| " + " | ".join(title for title, _ in COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(cell(one) for _, cell in COLUMNS) + " |" for one in found)])


def main() -> None:
    """Print the page, or of some types the table."""
    import transformers

    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found: list[Found] = []
    for name in sys.argv[1:] or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        found.append(try_target(name))
        one = found[-1]
        print(f"{name}: {one.rows} {one.why}; {one.static}; {one.batching}", file=sys.stderr, flush=True)
    if len(sys.argv) == 1:
        print(HEAD.format(version=".".join(transformers.__version__.split(".")[:2])))
        counts = {rows: sum(one.rows == rows for one in found) for rows in dict.fromkeys(one.rows for one in found)}
        print(", ".join(f"{count} {rows}" for rows, count in sorted(counts.items())) + ".\n")
    print(table(found))
    sys.exit(WRONG in table(found))


if __name__ == "__main__":
    main()
