"""What training costs, as ratios of processor time on one thread, all ways in one process.

    python benchmarks/measure_training.py --part step        # against the loss written out, one text a batch
    python benchmarks/measure_training.py --part step --target qwen3 --num_rows 4 --num_anchors 24
    python benchmarks/measure_training.py --part states      # from caches, against the target in the loop
    python benchmarks/measure_training.py --part context     # by length of the context, at the same number of anchors
    python benchmarks/measure_training.py --part cache       # building caches, against the target's plain forward pass

Texts are random ids, because only their lengths matter here. `--target qwen3` is a random target with the vocabulary
of Qwen3-4B and its widths divided by 5; its states are random too, so it is for `step` and `context` alone. Peak
memory is the kernel's own count (Linux).
"""

import ctypes
import gc
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    HfArgumentParser,
    Qwen3Config,
    TrainerCallback,
    set_seed,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dspark_hf import DraftTrainer, DraftTrainingArguments, DSparkModel, TargetCache, build_target_cache
from dspark_hf.data.cache.rows import batches
from dspark_hf.hub.embedded import resolve_target
from dspark_hf.ops.blocks import block_targets, slot_weights


@dataclass
class Arguments:
    """What to measure, and at which sizes."""

    part: str = field(metadata={"help": "What to measure.", "choices": ["step", "states", "context", "cache"]})
    target: str = field(default="embedded", metadata={"help": "`embedded`, or `qwen3` for a random one."})
    num_rows: int = field(default=8, metadata={"help": "Texts of a training step."})
    min_length: int = field(default=120, metadata={"help": "Tokens of the shortest text."})
    max_length: int = field(default=320, metadata={"help": "Tokens of the longest."})
    num_anchors: int = field(default=40, metadata={"help": "Anchors per text."})
    num_steps: int = field(default=3, metadata={"help": "Steps to take the median over, after one to warm up."})
    contexts: list[int] = field(default_factory=lambda: [256, 1024, 4096], metadata={"help": "Tokens of context."})
    dtypes: list[str] = field(
        default_factory=lambda: ["bf16", "fp8", "int8", "int4"], metadata={"help": "How caches are stored."}
    )
    num_tokens: int = field(default=16384, metadata={"help": "Tokens of a cache that is built."})
    log_norm: bool = field(default=False, metadata={"help": "Store what a reduced draft vocabulary reads."})
    draft_vocab_size: int = field(default=16384, metadata={"help": "Draft vocabulary of `states`."})
    loss_chunk_size: int = field(default=64, metadata={"help": "Rows whose logits are alive at a time."})
    compile_loss: bool = field(default=True, metadata={"help": "Compile the streamed loss."})
    seed: int = field(default=0, metadata={"help": "Of weights, texts and anchors."})
    json: str | None = field(default=None, metadata={"help": "File to write the figures to."})


DRAFTERS = {
    "embedded": {"num_hidden_layers": 2, "intermediate_size": 1280, "target_layer_ids": [2, 10, 18, 26],
                 "block_size": 5, "markov_rank": 32},
    "qwen3": {"num_hidden_layers": 5, "target_layer_ids": [0, 1, 2, 3, 4], "block_size": 7, "markov_rank": 256},
}  # fmt: skip


class WrittenOut(DraftTrainer):
    """The loss as reference code has it: float32 logits and probabilities of every slot of every block, in full."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = [inputs[name] for name in ("input_ids", "loss_mask", "anchors", "anchor_mask")]
        target_ids, source, block_mask = block_targets(*batch, self.num_slots)
        factors = self.loss_weights
        weights = slot_weights(self.num_slots, factors.slot_decay) * block_mask / num_items_in_batch
        rows = torch.arange(len(source))[:, None, None]

        def objective(drafter, output):
            logits = F.linear(output.hidden, drafter.head.weight)
            logits = (logits + drafter.markov_head.markov_w2(output.markov_states)).float()  # [B, A, n, V]
            target_logits = F.linear(inputs["last_hidden_states"][rows, source], drafter.head.weight).float()
            cross_entropy = F.cross_entropy(logits.flatten(0, -2), target_ids.flatten(), reduction="none")
            l1 = (torch.softmax(logits, -1) - torch.softmax(target_logits, -1)).abs().sum(-1)
            with torch.no_grad():
                accept = 1 - (torch.softmax(logits, -1) - torch.softmax(target_logits, -1)).abs().sum(-1) / 2
            confidence = F.binary_cross_entropy_with_logits(output.confidence_logits.float(), accept, reduction="none")
            each = factors.ce_weight * cross_entropy.view_as(l1) + factors.tv_weight * l1
            return (weights * (each + factors.confidence_weight * confidence)).sum()

        names = ("input_ids", "features", "anchors", "anchor_mask")
        loss = model(**{name: inputs[name] for name in names}, objective=objective)
        return (loss, None) if return_outputs else loss


class StepMeter(TrainerCallback):
    """Processor seconds of every step, data loading included, and the last step's peak of memory."""

    def __init__(self):
        self.seconds, self.peak_mib = [], None
        self._began = self._resident = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._began = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.process_time() - self._began)
        if state.global_step == state.max_steps:
            self.peak_mib = _memory("VmHWM") - self._resident
        elif state.global_step == state.max_steps - 1:
            # Gradients are gone by now; what is freed goes back, so that what is taken is seen.
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            self._resident = _memory("VmRSS")
        self._began = time.process_time()

    @property
    def median_seconds(self):
        return statistics.median(self.seconds[1:-1])  # without the one that warms up, and the one of the memory


def _memory(name):
    """A line of the process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def load_target(name, seed):
    if name == "embedded":
        return AutoModelForCausalLM.from_pretrained(resolve_target(name), dtype=torch.bfloat16).eval()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=512,
        intermediate_size=1952,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=96,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def make_drafter(args, target, **fields):
    torch.manual_seed(args.seed)
    return DSparkModel.from_target(target, **DRAFTERS[args.target], **fields).float()


def make_texts(args, vocab_size, lengths):
    rng = random.Random(args.seed)
    texts = ([rng.randrange(vocab_size) for _ in range(length)] for length in lengths)
    return [{"input_ids": ids, "loss_mask": [index >= len(ids) // 4 for index in range(len(ids))]} for ids in texts]


def random_lengths(args, num_rows):
    rng = random.Random(args.seed + 1)
    return [rng.randint(args.min_length, args.max_length) for _ in range(num_rows)]


def with_random_states(rows, drafter, seed):
    """Rows with states of the right sizes, as a cache would give them."""
    generator, width = torch.Generator().manual_seed(seed), drafter.config.hidden_size
    for row in rows:
        shape = (len(row["input_ids"]), (len(drafter.config.target_layer_ids) + 1) * width)
        states = torch.randn(shape, generator=generator).bfloat16()
        row["features"], row["last_hidden_states"] = states[:, :-width], states[:, -width:]
    return rows


def train(args, trainer_cls, drafter, target, rows, batch_size, num_steps=None):
    """The meter of a short training run, its loss at the first step, and the tokens of its timed steps."""
    meter, num_steps = StepMeter(), num_steps or args.num_steps + 2
    with tempfile.TemporaryDirectory() as folder:
        training = DraftTrainingArguments(
            folder,
            max_steps=num_steps,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=args.num_rows // batch_size,
            num_anchors=args.num_anchors,
            loss_chunk_size=args.loss_chunk_size,
            compile_loss=args.compile_loss and trainer_cls is DraftTrainer,
            bf16=True,
            seed=args.seed,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            num_eval_prompts=0,
            disable_tqdm=True,
        )
        trainer = trainer_cls(drafter, target, training, train_dataset=rows, callbacks=[meter])
        trainer.train()
    return meter, trainer.state.log_history[0]["loss"]


def measure_step(args, target):
    """Our step against one with a text a batch and the loss written out: the same texts, drafter and optimizer."""
    drafter = make_drafter(args, target)
    lengths = random_lengths(args, args.num_rows)
    rows = with_random_states(make_texts(args, drafter.config.vocab_size, lengths), drafter, args.seed)
    ways = {"ours": (DraftTrainer, args.num_rows), "written out": (WrittenOut, 1)}
    figures = {}
    for name, (trainer_cls, batch_size) in ways.items():
        meter, loss = train(args, trainer_cls, make_drafter(args, target), target, rows, batch_size)
        figures[name] = {"seconds": meter.median_seconds, "peak_mib": meter.peak_mib, "first_loss": loss}
    ours, other = figures.values()
    figures["ratio"] = {name: other[name] / ours[name] for name in ours}
    return figures


def measure_states(args, target):
    """Tokens per second of training with the target in the loop, and from a cache of each dtype."""
    fields = {"draft_vocab_size": args.draft_vocab_size}
    num_rows = args.num_rows * (args.num_steps + 2)
    rows = make_texts(args, args.draft_vocab_size, random_lengths(args, num_rows))
    taps, figures = DRAFTERS[args.target]["target_layer_ids"], {}
    num_tokens = statistics.mean(len(row["input_ids"]) for row in rows) * args.num_rows
    with tempfile.TemporaryDirectory() as folder:
        sources = {"online": rows}
        for dtype in args.dtypes:
            sources[dtype] = build_target_cache(
                target, rows, Path(folder, dtype), target_layer_ids=taps, dtype=dtype, log_norm=True, progress=False
            )
        for name, source in sources.items():
            drafter = make_drafter(args, target, **fields)
            meter, loss = train(args, DraftTrainer, drafter, target, source, args.num_rows)
            seconds = statistics.mean(meter.seconds[1:-1])
            figures[name] = {"tokens_per_second": num_tokens / seconds, "seconds": seconds, "first_loss": loss}
            if isinstance(source, TargetCache):
                began = time.process_time()
                for index in range(len(source)):
                    source[index]
                figures[name]["reading_share"] = (time.process_time() - began) / len(source) * args.num_rows / seconds
    for name in figures:
        figures[name]["ratio"] = figures[name]["tokens_per_second"] / figures["online"]["tokens_per_second"]
    return figures


def _blocks_only(module, query, key, value, attention_mask, **kwargs):
    """Attention in which blocks see themselves and no context: what it spares is the context's share."""
    columns = slice(-query.shape[2], None)
    return sdpa_attention_forward(
        module, query, key[:, :, columns], value[:, :, columns], attention_mask[..., columns], **kwargs
    )


def measure_context(args, target):
    """A step's time by context length: as a whole, without attention over the context, and its projection alone."""
    AttentionInterface.register("blocks_only", _blocks_only)
    figures = {}
    for context in args.contexts:
        drafter = make_drafter(args, target)
        texts = make_texts(args, drafter.config.vocab_size, [context + 1] * args.num_rows)
        rows = with_random_states(texts, drafter, args.seed)
        seconds = {}
        for name, attention in (("step", "sdpa"), ("without", "blocks_only")):
            drafter = make_drafter(args, target)
            drafter.config.decoder_config._attn_implementation = attention
            seconds[name] = train(args, DraftTrainer, drafter, target, rows, args.num_rows)[0].median_seconds
        features = torch.stack([row["features"] for row in rows])
        figures[context] = {
            "step_seconds": seconds["step"],
            "attention_share": 1 - seconds["without"] / seconds["step"],
            "projection_share": _projection_seconds(drafter, features, args.num_steps) / seconds["step"],
        }
    first = figures[args.contexts[0]]["step_seconds"]
    for figure in figures.values():
        figure["ratio"] = figure["step_seconds"] / first
        figure["ratio_of_the_rest"] = figure["ratio"] * (1 - figure["attention_share"] - figure["projection_share"])
    return figures


def _projection_seconds(drafter, features, num_times):
    """Forward and backward of the context's keys and values, up to where attention reads them."""
    seconds = []
    for _ in range(num_times + 1):
        began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            context = drafter.project(features)
            rope = drafter.rotary_emb(context, torch.arange(context.shape[1]).unsqueeze(0))
            pairs = [drafter.family.context_kv(layer.self_attn, context, rope) for layer in drafter.layers]
            sum(part.float().sum() for pair in pairs for part in pair).backward()
        seconds.append(time.process_time() - began)
        drafter.zero_grad()
    return statistics.median(seconds[1:])


class ForwardMeter:
    """Processor seconds of a target's passes, those without a mask (a cache's channel statistics) apart."""

    def __init__(self, target):
        self.seconds = {"rows": 0.0, "statistics": 0.0}
        self._hooks = [
            target.register_forward_pre_hook(self._begin, with_kwargs=True),
            target.register_forward_hook(self._end, with_kwargs=True),
        ]

    def _begin(self, module, args, kwargs):
        self._began = time.process_time()

    def _end(self, module, args, kwargs, output):
        kind = "statistics" if kwargs.get("attention_mask") is None else "rows"
        self.seconds[kind] += time.process_time() - self._began

    def remove(self):
        for hook in self._hooks:
            hook.remove()


@torch.no_grad()
def measure_cache(args, target):
    """Building a cache against the target's plain forward pass, which keeps no states and has no output head."""
    lengths = random_lengths(args, -(-2 * args.num_tokens // (args.min_length + args.max_length)))
    rows = make_texts(args, target.config.vocab_size, lengths)
    taps, plain, tapped = DRAFTERS[args.target]["target_layer_ids"], 0.0, 0.0
    options = {"target_layer_ids": taps, "log_norm": args.log_norm, "progress": False}
    figures = {}
    for dtype in args.dtypes:
        meter, began = ForwardMeter(target), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            cache = build_target_cache(target, rows, folder, dtype=dtype, **options)
            figure = {"bytes_per_token": cache.bytes_per_token}
        seconds = time.process_time() - began
        meter.remove()
        inside = meter.seconds
        figures[dtype] = figure | {
            "forward": inside["rows"],
            "statistics_share": inside["statistics"] / seconds,
            "rest_per_forward": (seconds - inside["rows"] - inside["statistics"]) / inside["rows"],
        }
    for number, chosen in enumerate(batches(lengths, 4096)):
        ids = [torch.tensor(rows[index]["input_ids"]) for index in chosen]
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        for is_tapped in (False, True) if number % 2 else (True, False):
            began = time.process_time()
            if is_tapped:
                target(ids, attention_mask=mask, use_cache=False, logits_to_keep=torch.zeros(1, dtype=torch.int64),
                       output_hidden_states=[tap + 1 for tap in taps])  # fmt: skip
                tapped += time.process_time() - began
            else:
                target.base_model(ids, attention_mask=mask, use_cache=False)
                plain += time.process_time() - began
    for figure in figures.values():
        figure["share_of_plain"] = plain / tapped / (1 + figure["rest_per_forward"])
    return {"num_tokens": sum(lengths), "tapped_per_plain": tapped / plain, **figures}


PARTS = {"step": measure_step, "states": measure_states, "context": measure_context, "cache": measure_cache}


def main():
    args = HfArgumentParser(Arguments, description=__doc__).parse_args_into_dataclasses()[0]
    if args.target == "qwen3" and args.part in ("states", "cache"):
        raise ValueError(f"--target qwen3 has random states; measure {args.part} with --target embedded.")
    torch.set_num_threads(1)
    set_seed(args.seed)
    figures = PARTS[args.part](args, load_target(args.target, args.seed))
    text = json.dumps({"arguments": vars(args), "torch": torch.__version__, args.part: figures}, indent=1)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
