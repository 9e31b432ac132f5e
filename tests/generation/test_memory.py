"""Peak memory of a long prompt, against plain `generate()`: `pytest -m slow -s tests/generation/test_memory.py`."""

import ctypes
import multiprocessing
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from dspark_hf import DSparkModel

NUM_TOKENS = 16384


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def grown_bytes(speculates, chunk_size, results):
    """How far the process grows over its size with both models loaded."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Freed blocks of any size go back at once, so that the size of the process is what is in use (M_MMAP_THRESHOLD).
    ctypes.CDLL(None).mallopt(-3, 65536)
    # One draft layer and one tap for seven target layers, as five for thirty-six.
    config = Qwen3Config(
        vocab_size=2048, hidden_size=192, intermediate_size=576, num_hidden_layers=7, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2 * NUM_TOKENS,
    )  # fmt: skip
    target = Qwen3ForCausalLM(config).eval()
    drafter = DSparkModel.from_target(target, num_hidden_layers=1, num_taps=1, mask_token_id=1)
    ids = torch.randint(2048, (1, NUM_TOKENS))
    loaded = resident_bytes()
    target.generate(
        ids, assistant_model=drafter if speculates else None, max_new_tokens=2, do_sample=False,
        prefill_chunk_size=chunk_size,
    )  # fmt: skip
    # The system's own high-water mark: a thread that looks now and then may miss the peak. That of `getrusage` would
    # be the parent's where that is larger.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    results.put(peak - loaded)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of a process from /proc")
@pytest.mark.parametrize("chunk_size", [None, 1024])
def test_prefill_of_16k_tokens(chunk_size):
    # A forked process would have the free memory of all tests before, and grow by less than it takes.
    context = multiprocessing.get_context("spawn")
    grown = []
    for speculates in (False, True):
        results = context.Queue()
        process = context.Process(target=grown_bytes, args=(speculates, chunk_size, results))
        process.start()
        grown.append(results.get(timeout=3600))
        process.join()
    plain, speculative = grown
    print(f"chunks of {chunk_size}: {speculative / plain:.3f} x the {plain / 2**20:.0f} MiB of plain generate()")
    assert speculative <= 1.15 * plain
