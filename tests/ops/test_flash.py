"""flash-attn in place of the attention kernel: what it is asked for, where it is not, and what if it is wrong."""

import sys
import types
import warnings
from dataclasses import replace

import pytest
import torch

from dspark_hf.ops import row_attention as package
from dspark_hf.ops.blocks import LayerView
from dspark_hf.ops.dispatch import allows_packages, kernel_for
from dspark_hf.ops.row_attention import flash, row_attention
from dspark_hf.ops.row_attention.cases import CASES, EVEN, make

CPU = torch.device("cpu")


def flash_attn_with_kvcache(
    q, k_cache, v_cache, *, cache_seqlens, softmax_scale, causal, window_size, calls=None
):  # fmt: skip
    """As flash-attn documents it: masks and windows are aligned with the last key and the last query."""
    assert q.dtype in (torch.bfloat16, torch.float16) and cache_seqlens.dtype == torch.int32
    assert k_cache.stride(-1) == v_cache.stride(-1) == 1
    out, (left, right) = torch.empty_like(q), window_size
    right = 0 if causal else right
    for row, length in enumerate(cache_seqlens.tolist()):
        keys, values = (
            cache[row, :length].double().repeat_interleave(q.shape[2] // cache.shape[2], 1)
            for cache in (k_cache, v_cache)
        )
        places = torch.arange(q.shape[1]).unsqueeze(1) + length - q.shape[1]
        columns = torch.arange(length)
        seen = (left < 0) | (columns >= places - left)
        seen &= (right < 0) | (columns <= places + right)
        scores = torch.einsum("qhd,khd->hqk", q[row].double(), keys) * softmax_scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[row] = torch.einsum("hqk,khd->qhd", weights, values).to(q.dtype)
    if calls is not None:
        calls.append(q.shape)
    return out


@pytest.fixture
def installed(kernels, monkeypatch):
    """flash-attn is there, and may be used; has the shapes of what it was called with."""
    calls = []

    def noted(*args, **kwargs):
        return flash_attn_with_kvcache(*args, **kwargs, calls=calls)

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_with_kvcache=noted))
    monkeypatch.setattr(flash.metadata, "version", lambda _: "2.8.3")
    monkeypatch.setattr(package, "allows_packages", lambda: True)
    clear()
    yield calls
    clear()


def clear():
    flash.flash_for.cache_clear()
    flash._find.cache_clear()


def test_it_runs_where_the_case_fits(installed, monkeypatch):
    assert flash.flash_for(CPU).why == "flash-attn 2.8.3" and len(installed) == len(EVEN)
    # Its own check is behind it.
    kernel = kernel_for("row_attention", CPU)
    monkeypatch.setattr(kernel, "row_attention_kernel", None)
    for case in EVEN:
        out = row_attention(**make(case, CPU), scaling=0.125, first=case.first)
        assert out.isfinite().all() and out.is_contiguous() and out.shape == (9, 4, 64)
    assert len(installed) == 2 * len(EVEN)


@pytest.mark.parametrize(
    "case",
    [
        replace(EVEN[0], counts=(3, 1, 2)),
        replace(EVEN[0], dtype=torch.float32),
        replace(EVEN[0], view=LayerView(9, False, True)),
        replace(EVEN[1], hidden=0.2),
        CASES["causal"],
    ],
)
def test_what_does_not_fit_is_the_kernels(installed, case):
    row_attention(**make(case, CPU), scaling=0.125)
    assert installed == []


def test_it_does_not_run_where_ours_are_asked_for(installed, monkeypatch):
    monkeypatch.setattr(package, "allows_packages", allows_packages)
    row_attention(**make(EVEN[0], CPU), scaling=0.125)
    assert installed == []


def test_what_is_wrong_is_off_with_one_warning(installed, monkeypatch):
    wrong = types.SimpleNamespace(flash_attn_with_kvcache=lambda q, *args, **kwargs: q)
    monkeypatch.setitem(sys.modules, "flash_attn", wrong)
    given = make(EVEN[0], CPU)
    with pytest.warns(RuntimeWarning, match="flash-attn 2.8.3 is off: its self-check failed: outputs differ by"):
        out = row_attention(**given, scaling=0.125)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(row_attention(**given, scaling=0.125), out)
    assert "self-check failed" in flash.flash_for(CPU).why


def test_the_hub_has_it_too(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    asked = []

    def get_kernel(name, version):
        asked.append((name, version))
        return types.SimpleNamespace(flash_attn_with_kvcache=flash_attn_with_kvcache)

    monkeypatch.setitem(sys.modules, "kernels", types.SimpleNamespace(get_kernel=get_kernel))
    found = flash.flash_for(CPU)
    assert found == (flash_attn_with_kvcache, "kernels-community/flash-attn2")
    assert asked == [("kernels-community/flash-attn2", 4)]


@pytest.mark.parametrize(
    ("kernels_module", "why"), [(None, "kernels is not installed"), ("old", "flash-attn2: AttributeError")]
)
def test_without_any_the_kernel_runs(installed, monkeypatch, kernels_module, why):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setitem(sys.modules, "kernels", kernels_module and types.SimpleNamespace())
    found = flash.flash_for(CPU)
    assert found.function is None and why in found.why
    assert row_attention(**make(EVEN[0], CPU), scaling=0.125).isfinite().all()
