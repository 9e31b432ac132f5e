"""A tiny target and rows for it to read."""

import resource
from contextlib import contextmanager

import pytest
import torch
from transformers import LlamaForCausalLM

from dspark_hf.data.features import TargetFeatures

TAPS = [0, 2]


@pytest.fixture(scope="package")
def target(tiny_target_dir):
    return LlamaForCausalLM.from_pretrained(tiny_target_dir).eval()


@pytest.fixture(scope="package")
def source(target):
    return TargetFeatures(target, TAPS)


@pytest.fixture(scope="package")
def rows():
    """Twenty rows of very different length; the fourth and the last have nothing that the target wrote."""
    generator = torch.Generator().manual_seed(1)
    lengths = [(5 + 13 * index) % 40 + 3 for index in range(20)]
    return [
        {
            "input_ids": torch.randint(0, 250, (length,), generator=generator).tolist(),
            "loss_mask": [index not in (3, 19) and place > 1 for place in range(length)],
        }
        for index, length in enumerate(lengths)
    ]


@pytest.fixture(scope="package")
def kept(rows):
    """The rows that a cache keeps."""
    return [row for row in rows if any(row["loss_mask"])]


@pytest.fixture
def build(target, tmp_path):
    """`build(rows, **options)`: a cache in several shards, in a folder of its own unless one is given."""
    from dspark_hf import build_target_cache

    def run(rows, folder=None, **options):
        defaults = {"target_layer_ids": TAPS, "shard_bytes": 20_000, "batch_tokens": 100, "progress": False}
        return build_target_cache(target, rows, folder or tmp_path / "cache", **{**defaults, **options})

    return run


@pytest.fixture
def no_space():
    """`with no_space(): ...`: files of more than 2,000 bytes cannot be written, as on a full disk."""

    @contextmanager
    def limit():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
