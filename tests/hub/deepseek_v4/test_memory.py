"""Quantised stages become bfloat16 piece by piece: never is a second copy of the drafter in memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parent))
from released import write_released  # noqa: E402

GOLDEN = Path(__file__).parents[2] / "golden" / "v4_dspark"
NUM_EXPERTS, WIDTH = 96, 1024

# Memory of one's own, without files that are mapped, looked at every millisecond.
WATCH = """
import sys, threading, time
from dspark_hf import AutoDrafter

def own():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        peaks.append(own())
        time.sleep(0.001)

AutoDrafter.from_pretrained(sys.argv[1])  # what is imported and made once
before, peaks, done = own(), [], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
drafter = AutoDrafter.from_pretrained(sys.argv[2])
done.set()
watcher.join()
size = sum(weight.numel() * weight.element_size() for weight in drafter.parameters())
print(size, max(peaks) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of a process")
def test_what_is_needed_beside_the_drafter_is_a_part_of_it(tmp_path):
    source = Path(shutil.copytree(GOLDEN, tmp_path / "wide", ignore=shutil.ignore_patterns("expected*", "target*")))
    config = json.loads((source / "config.json").read_text())
    config |= {"n_routed_experts": NUM_EXPERTS, "moe_intermediate_size": WIDTH}
    (source / "config.json").write_text(json.dumps(config))
    for shard in source.glob("model-*.safetensors"):
        grown = {}
        for name, weight in load_file(shard).items():
            if ".experts." in name or ".shared_experts." in name:
                shape = (64, WIDTH) if ".w2." in name else (WIDTH, 64)
                weight = torch.zeros(shape)
            if ".experts.0." in name:
                names = [name.replace(".experts.0.", f".experts.{i}.") for i in range(NUM_EXPERTS)]
                grown |= {one: torch.zeros(shape) for one in names}
            elif ".experts." not in name:
                is_gate = ".gate." in name and weight.is_floating_point()
                grown[name] = torch.zeros(NUM_EXPERTS, *weight.shape[1:]) if is_gate else weight
        save_file(grown, shard, {"format": "pt"})
    write_released(tmp_path / "released", source)
    asked = [sys.executable, "-c", WATCH, str(GOLDEN), str(tmp_path / "released")]
    size, peak = map(int, subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split())
    assert size > 10**8
    assert peak < 1.5 * size, (size, peak)
