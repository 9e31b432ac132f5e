"""Every kernel against its reference, case by case, in Triton's interpreter or on the GPU that there is."""

import pytest
import torch

from dspark_hf.ops.dispatch import KERNELS, is_interpreted, spec_of

pytest.importorskip("triton")

DEVICE = torch.device("cpu" if is_interpreted() else "cuda")
pytestmark = [
    pytest.mark.skipif(
        not is_interpreted() and not torch.cuda.is_available(), reason="needs a GPU, or TRITON_INTERPRET=1"
    ),
    # Of numpy, where a position has no distribution.
    pytest.mark.filterwarnings("ignore:.*(encountered in|All-NaN).*:RuntimeWarning"),
]
ALL = [(name, case) for name in KERNELS for case in spec_of(name).cases]
SHORT = [(name, case) for name, case in ALL if case in spec_of(name).short]
# Where bytes are counted of a part, that part stands for the whole, which would take the interpreter minutes.
WHOLE = [(name, case) for name in KERNELS if spec_of(name).counted for case in spec_of(name).benched]
LONG = [pair for pair in ALL if pair not in (WHOLE if is_interpreted() else []) + SHORT]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """What is allocated and not written is NaN, or no token at all."""

    def poisoned(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else -(2**30))

        return made

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.mark.parametrize(("name", "case"), SHORT)
def test_kernel_equals_its_reference(name, case):
    spec = spec_of(name)
    assert spec.compare(spec.cases[case], DEVICE) is None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), LONG)
def test_kernel_equals_its_reference_at_size(name, case):
    spec = spec_of(name)
    assert spec.compare(spec.cases[case], DEVICE) is None


@pytest.mark.parametrize("name", KERNELS)
def test_tables_hold_what_they_name(name):
    spec = spec_of(name)
    assert spec.name == name and {*spec.short, spec.self_check, *spec.benched, *spec.counted} <= set(spec.cases)
    assert spec.self_check in spec.short


@pytest.mark.parametrize("name", KERNELS)
def test_self_checks_leave_the_generator_alone(name):
    spec = spec_of(name)
    before = torch.get_rng_state()
    spec.compare(spec.cases[spec.self_check], DEVICE)
    assert torch.equal(torch.get_rng_state(), before)
