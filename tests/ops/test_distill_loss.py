"""The streamed loss against its formula: values, gradients, memory."""

from functools import partial

import pytest
import torch

from dspark_hf.ops.dispatch import kernel_for
from dspark_hf.ops.distill_loss import distill_loss, distill_loss_reference, streamed_log_norm
from dspark_hf.ops.distill_loss.streamed import logit_gradient
from dspark_hf.ops.output_head import OutputHead

CASES = [(1, 7, 3), (63, 100, 8), (70, 1000, 16)]
OPTIONS = [
    {},
    {"ce_weight": 1.0, "tv_weight": 0.0},
    {"tv_weight": 3.0},
    {"softcap": 2.0},
    {"logit_scale": 0.3},
    {"logit_scale": 3.0, "softcap": 2.0},
    {"ce_weight": 0.0, "tv_weight": 0.0, "soft_ce_weight": 1.0},
    {"soft_ce_weight": 0.3, "softcap": 2.0},
]


def make_inputs(num_rows, vocab_size, rank, dtype=torch.float32):
    torch.manual_seed(0)
    hidden_size = 24
    return {
        "hidden": torch.randn(num_rows, hidden_size).to(dtype).requires_grad_(),
        "head_weight": (torch.randn(vocab_size, hidden_size) * 0.5).to(dtype),
        "target_hidden": torch.randn(num_rows, hidden_size).to(dtype),
        "target_ids": torch.randint(vocab_size, (num_rows,)),
        "weights": torch.rand(num_rows) / num_rows,
        "head_bias": None,
        "markov_states": torch.randn(num_rows, rank).to(dtype).requires_grad_(),
        "markov_weight": torch.randn(vocab_size, rank).to(dtype).requires_grad_(),
    }


def gradients(loss, inputs):
    return torch.autograd.grad(loss, [value for value in inputs.values() if value is not None and value.requires_grad])


def assert_equal_to_reference(inputs, **options):
    streamed = distill_loss(**inputs, chunk_size=32, **options)
    reference = distill_loss_reference(**inputs, **{k: v for k, v in options.items() if k != "compile"})
    for ours, theirs in zip(streamed, reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    pairs = zip(gradients(streamed.loss, inputs), gradients(reference[0], inputs), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_formula(case, options):
    assert_equal_to_reference(make_inputs(*case), **options)


@pytest.mark.parametrize("options", [{}, {"logit_scale": 0.3, "softcap": 20.0}], ids=str)
def test_a_head_with_a_bias(options):
    inputs = make_inputs(63, 100, 8)
    without = distill_loss(**inputs, **options)
    inputs["head_bias"] = torch.randn(100) * 3
    assert_equal_to_reference(inputs, **options)
    assert not torch.allclose(distill_loss(**inputs, **options).l1, without.l1)
    # A token that both sides are sure of.
    inputs["head_bias"][7], inputs["markov_states"] = 1e3, torch.zeros(63, 8)
    assert float(distill_loss(**inputs).l1.max()) < 1e-4
    target_head = OutputHead(inputs["head_weight"], bias=inputs["head_bias"])
    assert_equal_to_reference(inputs | {"head_bias": None}, target_head=target_head)


def test_without_sequential_head():
    inputs = make_inputs(63, 100, 8) | {"markov_states": None, "markov_weight": None}
    assert_equal_to_reference(inputs)


@pytest.mark.parametrize("options", [{}, {"logit_scale": 0.3, "softcap": 2.0}], ids=str)
def test_a_head_of_the_drafters_own_learns(options):
    inputs = make_inputs(63, 100, 8)
    inputs["head_weight"].requires_grad_()
    target_head = OutputHead(torch.randn(100, 24), 0.5, 3.0)
    assert_equal_to_reference(inputs, target_head=target_head, **options)
    # Its own logits do not depend on the target's head, but the distance does.
    assert not torch.allclose(distill_loss(**inputs).l1, distill_loss(**inputs, target_head=target_head).l1)


def test_log_norm_of_scaled_and_capped_logits():
    hidden, weight = torch.randn(9, 24), torch.randn(50, 24)
    capped = 3 * torch.tanh(0.5 * hidden @ weight.T / 3)
    torch.testing.assert_close(streamed_log_norm(hidden, OutputHead(weight, 0.5, 3.0), 4), capped.logsumexp(-1))
    bias = torch.randn(50)
    capped = 3 * torch.tanh(0.5 * (hidden @ weight.T + bias) / 3)
    torch.testing.assert_close(streamed_log_norm(hidden, OutputHead(weight, 0.5, 3.0, bias), 4), capped.logsumexp(-1))


def test_reduced_vocabulary():
    inputs = make_inputs(70, 100, 8)
    whole = torch.cat([inputs["head_weight"], torch.randn(50, 24) * 0.5])
    inputs["target_log_norm"] = streamed_log_norm(inputs["target_hidden"], OutputHead(whole), 32)
    torch.testing.assert_close(inputs["target_log_norm"], (inputs["target_hidden"] @ whole.T).logsumexp(-1))
    inputs["target_ids"] = torch.where(inputs["target_ids"] < 60, inputs["target_ids"], -1)
    assert_equal_to_reference(inputs)
    assert_equal_to_reference(inputs, soft_ce_weight=0.5)
    # What the target gives to absent tokens is distance: the sum over the whole vocabulary says the same.
    draft = torch.zeros(70, 150)
    logits = inputs["hidden"] @ inputs["head_weight"].T + inputs["markov_states"] @ inputs["markov_weight"].T
    draft[:, :100] = logits.softmax(-1)
    distance = (draft - (inputs["target_hidden"] @ whole.T).softmax(-1)).abs().sum(-1)
    torch.testing.assert_close(distill_loss(**inputs).l1, distance.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduced", [False, True])
def test_soft_cross_entropy_is_torchs(reduced):
    """To the target's distribution over the rows of the head; rows without a token in them have none."""
    inputs = make_inputs(40, 60, 8) | {"markov_states": None, "markov_weight": None}
    if reduced:
        inputs["target_hidden"][1:8] *= 1e3  # next to nothing is left for the rows of the head, or all of it
        whole = torch.cat([inputs["head_weight"], torch.randn(30, 24)])
        inputs["target_log_norm"] = streamed_log_norm(inputs["target_hidden"], OutputHead(whole), 16)
        inputs["target_ids"][::3] = -1
    logits, targets = (inputs[name] @ inputs["head_weight"].T for name in ("hidden", "target_hidden"))
    naive = torch.nn.functional.cross_entropy(logits, targets.softmax(-1), reduction="none")
    naive = (inputs["weights"] * naive * (inputs["target_ids"] >= 0)).sum()
    loss = distill_loss(**inputs, ce_weight=0.0, tv_weight=0.0, soft_ce_weight=1.0, chunk_size=16).loss
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(gradients(loss, inputs), gradients(naive, inputs), rtol=1e-4, atol=1e-6)


def test_bfloat16_is_close():
    exact, rounded = make_inputs(63, 100, 8), make_inputs(63, 100, 8, torch.bfloat16)
    loss = distill_loss(**rounded).loss
    torch.testing.assert_close(loss, distill_loss(**exact).loss, rtol=2e-2, atol=0)
    assert loss.dtype == torch.float32


def test_chunks_do_not_matter_and_no_rows_are_fine():
    inputs = make_inputs(63, 100, 8)
    losses = [distill_loss(**inputs, chunk_size=size).loss.item() for size in (1, 10, 63, 500)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)
    of_vocabulary = ("head_weight", "head_bias", "markov_weight")
    empty = {name: value if name in of_vocabulary else value[:0] for name, value in inputs.items()}
    assert distill_loss(**empty).loss.item() == 0


@pytest.mark.slow
def test_compiled():
    assert_equal_to_reference(make_inputs(70, 1000, 16), compile=True, soft_ce_weight=0.5)


def test_one_of_a_pair_is_refused():
    inputs = make_inputs(3, 7, 3) | {"markov_weight": None}
    with pytest.raises(ValueError, match="belong together"):
        distill_loss(**inputs)


def test_no_full_logits_are_alive():
    """The biggest tensor of forward and backward is one chunk's, not all rows'."""
    inputs = make_inputs(512, 5000, 8)
    biggest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal biggest
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    biggest = max(biggest, tensor.numel())
            return result

    with Watch():
        distill_loss(**inputs, chunk_size=16).loss.backward()
    assert biggest <= 5000 * 24  # the head itself; all logits would be 512 * 5000


@pytest.fixture
def launches(kernels, monkeypatch):
    """How many rows the kernel is given, call by call."""
    seen = []

    kernel = kernel_for("distill_loss", torch.device("cpu"))
    run = kernel.logit_gradient_kernel

    def noted(logits, *args):
        seen.append(len(logits))
        return run(logits, *args)

    monkeypatch.setattr(kernel, "logit_gradient_kernel", noted)
    return seen


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_kernel_equals_the_formula(launches, options):
    assert_equal_to_reference(make_inputs(40, 100, 8), **options)
    assert launches == [32, 8]


@pytest.mark.parametrize(
    "check",
    [
        test_reduced_vocabulary,
        partial(test_soft_cross_entropy_is_torchs, True),
        partial(test_a_head_of_the_drafters_own_learns, {"logit_scale": 0.3, "softcap": 2.0}),
    ],
    ids=["reduced", "soft", "own head"],
)
def test_the_kernel_does_what_torch_does(launches, monkeypatch, check):
    monkeypatch.setattr("dspark_hf.ops.distill_loss.logit_gradient", None)
    check()
    assert launches


def test_float64_and_what_is_to_be_compiled_have_no_kernel(launches, monkeypatch):
    inputs = make_inputs(3, 7, 3, torch.float64)
    assert distill_loss(**inputs).loss.isfinite()
    monkeypatch.setattr("dspark_hf.ops.distill_loss.compiled_logit_gradient", lambda: logit_gradient)
    assert distill_loss(**make_inputs(3, 7, 3), compile=True, chunk_size=3).loss.isfinite()
    assert launches == []
