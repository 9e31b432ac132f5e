"""The rule of dispatch: which implementation runs, and why."""

import subprocess
import sys
import types
import warnings

import pytest
import torch

from dspark_hf.ops import dispatch
from dspark_hf.ops.dispatch import choose, failure, kernel_for
from dspark_hf.ops.spec import KernelSpec, Least

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def fake(monkeypatch):
    """An op with a kernel that equals its reference unless `fake.differs` says how it does not; counts self-checks."""
    state = types.SimpleNamespace(differs=None, checks=0)

    def compare(case, device):
        state.checks += 1
        if isinstance(state.differs, Exception):
            raise state.differs
        return state.differs

    spec = KernelSpec(
        "fake", {"small": 1}, ("small",), "small", ("small",), compare, lambda *_: {}, lambda _: Least(1)
    )
    for part in ("triton", "cases"):
        module = types.ModuleType(f"dspark_hf.ops.fake.{part}")
        module.SPEC = spec
        monkeypatch.setitem(sys.modules, module.__name__, module)
    state.module = sys.modules["dspark_hf.ops.fake.triton"]
    monkeypatch.setattr(dispatch, "has_triton", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    failure.cache_clear()
    yield state
    failure.cache_clear()


def test_auto_takes_torch_on_a_cpu(fake):
    assert kernel_for("fake", CPU) is None and fake.checks == 0
    choice = choose("fake", CPU)
    assert choice.runs == "torch" and "TRITON_INTERPRET=1 is for tests" in choice.why


def test_auto_takes_the_kernel_on_a_gpu(fake, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert kernel_for("fake", CUDA) is fake.module
    assert choose("fake", CUDA) == ("triton", "on cuda:0")
    assert kernel_for("fake", CPU) is None
    assert choose("fake", CPU).why == "tensors are on cpu, not on a CUDA device"


def test_old_gpus_run_torch(fake, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert choose("fake", CUDA) == ("torch", "kernels need compute capability 8.0, cuda:0 has 7.5")


def test_torch_takes_no_kernel(fake, monkeypatch):
    monkeypatch.setenv("DSPARK_HF_KERNELS", "torch")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert kernel_for("fake", CUDA) is None
    assert choose("fake", CUDA) == ("torch", "DSPARK_HF_KERNELS=torch")


def test_triton_takes_it_in_the_interpreter(fake, monkeypatch):
    monkeypatch.setenv("DSPARK_HF_KERNELS", "triton")
    assert kernel_for("fake", CPU) is fake.module
    assert kernel_for("fake", CPU) is fake.module and fake.checks == 1
    assert choose("fake", CPU) == ("triton", "DSPARK_HF_KERNELS=triton, in the interpreter")


def test_compiled_code_has_no_kernel(fake, monkeypatch):
    monkeypatch.setenv("DSPARK_HF_KERNELS", "triton")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert kernel_for("fake", CPU) is None


def test_what_cannot_run_is_an_error_where_it_is_asked_for(fake, monkeypatch):
    monkeypatch.setenv("DSPARK_HF_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"asks for kernels on cpu, .* tensors are on cpu.* Leave it out"):
        kernel_for("fake", CPU)
    assert choose("fake", CPU).runs == "torch"
    monkeypatch.setattr(dispatch, "has_triton", lambda: False)
    with pytest.raises(ValueError, match="Triton is not installed"):
        kernel_for("fake", CUDA)


def test_unknown_settings_are_an_error(fake, monkeypatch):
    monkeypatch.setenv("DSPARK_HF_KERNELS", "on")
    with pytest.raises(ValueError, match="DSPARK_HF_KERNELS must be one of auto, torch, triton, got 'on'"):
        kernel_for("fake", CPU)
    assert "got 'on'" in choose("fake", CPU).why


@pytest.mark.parametrize("differs", ["rows differ", RuntimeError("no such\n instruction")])
def test_a_kernel_that_fails_its_check_is_off_with_one_warning(fake, monkeypatch, differs):
    monkeypatch.setenv("DSPARK_HF_KERNELS", "triton")
    fake.differs = differs
    with pytest.warns(
        RuntimeWarning, match="The fake kernel is off on cpu, torch runs instead; its self-check failed"
    ):
        assert kernel_for("fake", CPU) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel_for("fake", CPU) is None and fake.checks == 1
    choice = choose("fake", CPU)
    assert choice.runs == "torch" and str(differs).split()[-1] in choice.why


def test_without_triton_the_package_works():
    code = (
        "import sys; sys.modules['triton'] = None; import torch, importlib.util as u; u.find_spec = lambda *_: None\n"
        "import dspark_hf.ops.verify; from dspark_hf.ops.dispatch import choose\n"
        "print(choose('verify', torch.device('cuda')).why)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Triton is not installed" in result.stdout, result.stderr
