"""A tiny checkpoint in the quantised form of DeepSeek-V4's releases, and what its numbers are in bfloat16."""

import json

import torch
from safetensors.torch import load_file, save_file

# e2m1: sign, two bits of exponent, one of mantissa.
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
INDEX = "model.safetensors.index.json"


def powers(shape, generator):
    """Scales, all powers of two."""
    return torch.exp2(torch.randint(-9, -4, shape, generator=generator).float())


def write_released(folder, source, block=(8, 8)):
    """Write the golden repository `source` with FP8 and FP4 weights.

    Returns the drafter's tensors by released names, as they are to be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    config |= {"torch_dtype": "bfloat16", "expert_dtype": "fp4"}
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0",
                                     "activation_scheme": "dynamic", "weight_block_size": list(block)}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    generator, weight_map, numbers = torch.Generator().manual_seed(0), {}, {}
    for path in sorted(source.glob("model-*.safetensors")):
        written = {}
        for name, weight in load_file(path).items():
            stored, number = quantised(name, weight, block, generator)
            written |= stored
            if name.startswith("mtp."):
                numbers[name] = number
        save_file(written, folder / path.name, {"format": "pt"})
        weight_map |= dict.fromkeys(written, path.name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return numbers


def quantised(name, weight, block, generator):
    """A tensor as it is stored, with its scale, and the number that it is."""
    scale_name = name.removesuffix("weight") + "scale"
    if ".experts." in name:
        rows, columns = weight.shape
        codes = torch.randint(0, 16, weight.shape, generator=generator)
        scale = powers((rows, columns // 32), generator)
        packed = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8).view(torch.int8)
        number = FP4[codes] * scale.repeat_interleave(32, 1)
        return {name: packed, scale_name: scale.to(torch.float8_e8m0fnu)}, number
    is_linear = any(part in name for part in (".attn.w", ".shared_experts.", ".main_proj."))
    if is_linear and "wo_a" not in name or ".wo_a." in name:
        scale = powers([size // length for size, length in zip(weight.shape, block, strict=True)], generator)
        codes = (weight * 100).to(torch.float8_e4m3fn)
        grown = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        return {name: codes, scale_name: scale.to(torch.float8_e8m0fnu)}, codes.float() * grown
    is_float32 = any(part in name for part in ("hc_", "attn_sink", "gate.bias")) or not weight.is_floating_point()
    stored = weight if is_float32 else weight.bfloat16()
    return {name: stored}, stored
