"""The DeepSpeed configs as DeepSpeed itself reads them, with the trainer's arguments filled in."""

from pathlib import Path

import pytest
import yaml

from dspark_hf import DraftTrainingArguments

CONFIGS = Path(__file__).resolve().parents[2] / "examples" / "accelerate"


@pytest.mark.parametrize("stage", [2, 3])
def test_configs_fit_the_trainer(stage, tmp_path, monkeypatch, target):
    """As `accelerate launch` hands them over, and as the trainer completes them before DeepSpeed takes them."""
    runtime = pytest.importorskip("deepspeed.runtime.config")
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    path = CONFIGS / f"deepspeed_zero{stage}.yaml"
    given = launch_command_parser().parse_args(["--config_file", str(path), "--main_process_port", "0", "script.py"])
    given, defaults, _ = _validate_launch_command(given)
    given.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    for name, value in prepare_deepspeed_cmd_env(given)[1].items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    args = DraftTrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=4, bf16=True
    )
    config = HfTrainerDeepSpeedConfig(args.deepspeed_plugin.deepspeed_config)
    config.trainer_config_process(args)
    config.trainer_config_finalize(args, target, num_training_steps=10)
    monkeypatch.setenv("WORLD_SIZE", "1")
    read = runtime.DeepSpeedConfig(config.config)
    assert read.zero_optimization_stage == stage == yaml.safe_load(path.read_text())["deepspeed_config"]["zero_stage"]
    assert read.train_micro_batch_size_per_gpu == 2 and read.gradient_accumulation_steps == 4
    assert read.gradient_clipping == args.max_grad_norm == 1.0
    assert read.bfloat16_config.enabled
