"""Training data without a length: conversations are encoded as they come, and nothing is held."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import datasets
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from dspark_hf.data.collator import has_anchors
from dspark_hf.data.conversation_files import iterate_places
from dspark_hf.data.conversations import has_conversation
from dspark_hf.data.left_out import LeftOut
from dspark_hf.data.rows import encode_row, row_name

SHUFFLE_BUFFER = 10_000
# Column of a streamed row's file and line, which its order does not tell.
_PLACE = "place"


class StreamedRows(IterableDataset):
    """The rows of a stream, without those that have nothing to learn from.

    Where it repeats, one pass follows the other without end, and rows carry the number of theirs (`stream_epoch`),
    from which the collator draws anchors. To a trainer that is one epoch: a resumed run finds its place at any step.

    Args:
        stream (`Iterable`): Conversations, or rows of `input_ids` and `loss_mask`. It is gone through
            once per pass, after `set_epoch(pass)` where it has that method, as a `datasets.IterableDataset` does.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed for conversations.
        max_length (`int`): Conversations are cut to so many tokens.
        repeats (`bool`, *optional*, defaults to `False`): Whether it starts again at its end.
        keep_special_tokens (`bool`, *optional*, defaults to `False`): As of [`~data.rows.encode_row`].
        strict (`bool`, *optional*, defaults to `False`): Whether a conversation that cannot be encoded is an error.
            Otherwise it is left out; how many are, and why, is said after each pass.

    Raises:
        `ValueError`: While it is read: if a pass gives no row at all.
    """

    def __init__(
        self,
        stream: Iterable[Mapping[str, Any]],
        tokenizer: Any,
        max_length: int,
        repeats: bool = False,
        keep_special_tokens: bool = False,
        strict: bool = False,
    ):
        self.stream, self.tokenizer, self.max_length, self.repeats = stream, tokenizer, max_length, repeats
        self.keep_special_tokens, self.strict = keep_special_tokens, strict

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for epoch in count():
            if hasattr(self.stream, "set_epoch"):
                self.stream.set_epoch(epoch)
            num_rows, left_out = 0, LeftOut(self.strict)
            for index, row in enumerate(self.stream):
                left_out.num_rows += 1
                encoded = self._encode(row, row.get(_PLACE, f"{row_name(index)} of pass {epoch + 1}"), left_out)
                if has_anchors(encoded["loss_mask"]):
                    num_rows += 1
                    yield encoded | ({"stream_epoch": epoch} if self.repeats else {})
            if not num_rows:
                raise ValueError(
                    f"The data stream gave no row with an answer of two tokens within max_length={self.max_length} in "
                    f"its pass {epoch + 1} ({left_out.reasons() or 'no rows at all'}). Give other data; a generator "
                    "that ends after one pass must be made anew for each: datasets.IterableDataset.from_generator"
                    "(function)."
                )
            left_out.tell("Data stream")
            if not self.repeats:
                return

    def _encode(self, row: Mapping[str, Any], where: str, left_out: LeftOut) -> dict[str, Any]:
        if not has_conversation(row):
            return dict(row)
        options = {"keep_special_tokens": self.keep_special_tokens, "left_out": left_out}
        return encode_row(row, self.tokenizer, self.max_length, where=where, **options)


def prepare_for_streams(args: TrainingArguments, train_rows: Any, eval_rows: Any) -> None:
    """Check what streams need. Each process reads one for itself and keeps its share, as batches differ in length.

    Args:
        args (`TrainingArguments`): The arguments, whose `accelerator_config.dispatch_batches` is set to `False`.
        train_rows, eval_rows (`Any`): The datasets; evaluation may have several by name.

    Raises:
        `ValueError`: If the number of steps is not given, or several workers would read the same rows.
    """
    parts = eval_rows.values() if isinstance(eval_rows, dict) else [eval_rows]
    if not any(isinstance(part, StreamedRows) for part in (train_rows, *parts)):
        return
    if isinstance(train_rows, StreamedRows) and args.max_steps <= 0:
        raise ValueError(
            "The training data are a stream, whose length is not known: set max_steps (num_train_epochs says nothing)."
        )
    if args.dataloader_num_workers > 1:
        raise ValueError(
            f"A stream is read by one worker in order, got dataloader_num_workers={args.dataloader_num_workers}; set "
            "it to 0 or 1."
        )
    if args.accelerator_config.dispatch_batches is None:
        args.accelerator_config.dispatch_batches = False


def stream_files(
    files: Sequence[str], num_held_out: int, seed: int, strict: bool = False
) -> tuple[list[dict[str, Any]], Any]:
    """Conversations of files, read line by line.

    Args:
        files (`Sequence[str]`): The files; each one's first conversation is read at once.
        num_held_out (`int`): So many conversations at the beginning are not in the stream.
        seed (`int`): Of the order, in which a buffer of `SHUFFLE_BUFFER` conversations is shuffled.
        strict (`bool`, *optional*, defaults to `False`): Whether a line that cannot be read is an error. Otherwise it
            is left out; how many are is said after each pass.

    Returns:
        `tuple[list[dict], datasets.IterableDataset]`: Those at the beginning, and a stream of the others.

    Raises:
        `ValueError`: If a file cannot be read, is empty, or nothing is left behind the beginning.
    """
    for file in files:
        next(iterate_places(file, LeftOut(strict)), None)
    stream = datasets.IterableDataset.from_generator(_read, gen_kwargs={"files": list(files), "strict": strict})
    beginning = list(stream.take(num_held_out + 1))
    if len(beginning) <= num_held_out:
        raise ValueError(
            f"{list(files)} hold {len(beginning)} conversations, and held_out={num_held_out} of them are kept for "
            "evaluation: lower held_out."
        )
    stream = stream.skip(num_held_out).shuffle(seed, buffer_size=SHUFFLE_BUFFER)
    return beginning[:num_held_out], stream


def _read(files: Sequence[str], strict: bool) -> Iterator[dict[str, Any]]:
    left_out = LeftOut(strict)
    for file in files:
        for place, row in iterate_places(file, left_out):
            yield {**row, _PLACE: place}
    left_out.tell(", ".join(files))
