"""Average the weights of drafters of one shape, such as a run's last checkpoints, into a new one (bfloat16).

python examples/average_drafters.py --out MEAN runs/a/checkpoint-800 runs/a/checkpoint-900 runs/a/checkpoint-1000
"""

import argparse

import torch

from dspark_hf import AutoDrafter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="The drafters.")
    parser.add_argument("--out", required=True, help="Folder of the new one.")
    options = parser.parse_args()
    drafters = [AutoDrafter.from_pretrained(folder, dtype=torch.float32) for folder in options.folders]
    mean = drafters[0]
    shapes = [{name: tensor.shape for name, tensor in drafter.named_parameters()} for drafter in drafters]
    for folder, other in zip(options.folders, shapes, strict=True):
        if other != shapes[0]:
            raise ValueError(f"{folder} and {options.folders[0]} differ in shape. Give checkpoints of one run.")
    others = [dict(drafter.named_parameters()) for drafter in drafters[1:]]
    with torch.no_grad():
        for name, parameter in mean.named_parameters():
            parameter.copy_(torch.stack([parameter, *(other[name] for other in others)]).mean(0))
    mean.to(torch.bfloat16).save_pretrained(options.out)
    print(f"The mean of {len(drafters)} drafters: {options.out}")


if __name__ == "__main__":
    main()
