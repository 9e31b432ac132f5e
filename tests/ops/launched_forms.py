"""Which forms of a kernel its launches ask Triton for, on tensors of a CPU and without running one.

TRITON_INTERPRET=0 python tests/ops/launched_forms.py     prints forms that `configurations()` lacks
"""

import importlib
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from dspark_hf.ops.dispatch import KERNELS, spec_of
from dspark_hf.ops.spec import Configuration

BACKEND = make_backend(GPUTarget("cuda", 90, 32))


def form_of(configuration: Configuration) -> tuple:
    """A form as Triton tells it from others: types, what is divisible by 16, constants, warps and stages."""
    arguments = [
        (name, configuration.constants[name]) if kind == "constexpr" else (name, kind, name in configuration.aligned)
        for name, kind in configuration.signature.items()
    ]
    function = configuration.function
    return (function.__name__, *arguments, configuration.num_warps, configuration.num_stages)


def launched(kernel: str) -> dict[tuple, str]:
    """Every form that the short cases of a kernel launch, with one that does."""
    found, spec = {}, spec_of(kernel)

    def note(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        bind = create_function_from_signature(self.signature, self.params, BACKEND)
        values, kinds, options = bind(*args, **kwargs)
        arguments = [
            (name, value) if kind == "constexpr" and parameter.is_constexpr else (name, kind, mark == "D")
            for parameter, (name, value), (kind, mark) in zip(self.params, values.items(), kinds, strict=True)
        ]
        found[(self.__name__, *arguments, options["num_warps"], options.get("num_stages", 3))] = case

    JITFunction.run = note
    for case in spec.short:
        spec.ways(spec.cases[case], torch.device("cpu"))["triton"]()
    return found


if __name__ == "__main__":
    for name in KERNELS:
        forms = launched(name)
        known = {form_of(one) for one in importlib.import_module(f"dspark_hf.ops.{name}.triton").configurations()}
        for form, case in forms.items():
            if form not in known:
                print(f"{name}, {case}: {form}")
        print(f"{name}: {len(forms)} forms launched")
