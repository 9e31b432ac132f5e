"""LoRA: on a drafter (trained, saved, loaded, generating), and on its target."""

import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import LlamaForCausalLM

from dspark_hf import AutoDrafter, DraftTrainer, DSparkModel
from dspark_hf.trainers.adapters import add_adapter

GREEDY = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def base_dir(target, tmp_path_factory):
    """A saved drafter of the target."""
    torch.manual_seed(2)
    drafter = DSparkModel.from_target(target, num_hidden_layers=1, block_size=4, markov_rank=8, num_anchors=8)
    folder = tmp_path_factory.mktemp("base") / "drafter"
    drafter.save_pretrained(folder)
    return folder


def lora(**fields):
    return LoraConfig(**{"r": 4, "lora_alpha": 16, **fields})


def answer(target, drafter, prompts):
    """Ids and accepted lengths."""
    ids = target.generate(prompts, assistant_model=drafter, **GREEDY)
    return ids, drafter.last_stats.accepted_lens


def test_an_adapter_is_trained_saved_loaded_and_generates(make_trainer, target, rows, base_dir, tmp_path):
    base = AutoDrafter.from_pretrained(base_dir)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    trainer = make_trainer(
        tmp_path, rows, drafter=base, peft_config=lora(), learning_rate=1e-2, max_steps=12, eval_rows=rows[:4],
        num_eval_prompts=4, eval_max_new_tokens=8, activation_checkpointing=True,
    )  # fmt: skip
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert history[-1]["loss"] < history[0]["loss"]
    assert trainer.evaluate()["eval_tau"] >= 1
    trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / "adapter_model.safetensors").exists()
    modes = {(tmp_path / name).stat().st_mode for name in ("adapter_model.safetensors", "adapter_config.json")}
    assert len(modes) == 1, "as open as any new file"

    loaded = AutoDrafter.from_pretrained(tmp_path)
    by_hand = PeftModel.from_pretrained(AutoDrafter.from_pretrained(base_dir), tmp_path).eval()
    inner = loaded.get_base_model()
    assert isinstance(loaded, PeftModel) and not loaded.training
    assert all(torch.equal(inner.state_dict()[_below(name, inner)], tensor) for name, tensor in before.items())
    prompts = torch.tensor([row["input_ids"][:3] for row in rows[:3]])
    plain = target.generate(prompts, **GREEDY)
    ids, accepted = answer(target, trainer.model.eval(), prompts)
    assert torch.equal(ids, plain)
    for drafter in (loaded, by_hand):
        ids_of_drafter, accepted_of_drafter = answer(target, drafter, prompts)
        assert torch.equal(ids_of_drafter, plain) and accepted_of_drafter == accepted
    features = torch.randn(1, 5, inner.fc.in_features)
    assert not torch.equal(loaded.project(features), AutoDrafter.from_pretrained(base_dir).project(features))


def _below(name, model):
    """A weight's name where its layer may have an adapter."""
    module, _, parameter = name.rpartition(".")
    return f"{module}.base_layer.{parameter}" if f"{module}.base_layer.{parameter}" in model.state_dict() else name


def test_an_adapter_resumes_bit_for_bit(make_trainer, rows, base_dir, tmp_path):
    options = {"peft_config": lora(), "save_strategy": "steps", "save_steps": 2}

    def trainer(folder):
        return make_trainer(folder, rows, drafter=AutoDrafter.from_pretrained(base_dir), **copy.deepcopy(options))

    whole, resumed = trainer(tmp_path), trainer(tmp_path)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_a_saved_adapter_is_trained_on(make_trainer, rows, base_dir, tmp_path):
    add_adapter(AutoDrafter.from_pretrained(base_dir), lora()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is_trainable=True"):
        make_trainer(tmp_path, rows, drafter=AutoDrafter.from_pretrained(tmp_path))
    drafter = PeftModel.from_pretrained(AutoDrafter.from_pretrained(base_dir), tmp_path, is_trainable=True)
    before = {name: tensor.clone() for name, tensor in drafter.state_dict().items()}
    make_trainer(tmp_path, rows, drafter=drafter, max_steps=3).train()
    changed = {name for name, tensor in drafter.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all("lora_" in name for name in changed)


def test_the_sequential_head_is_trained_whole(make_trainer, rows, base_dir, tmp_path):
    drafter = AutoDrafter.from_pretrained(base_dir)
    before = drafter.markov_head.markov_w2.weight.clone()
    config = lora(target_modules=["q_proj"], modules_to_save=["markov_w2"])
    trainer = make_trainer(tmp_path, rows, drafter=drafter, peft_config=config, max_steps=2)
    trainer.train()
    trainer.save_model()
    loaded = AutoDrafter.from_pretrained(tmp_path)
    assert not torch.equal(loaded.markov_head.markov_w2.weight, before)
    assert torch.equal(loaded.markov_head.markov_w2.weight, trainer.model.markov_head.markov_w2.weight)


def test_what_a_drafter_cannot_adapt(base_dir):
    drafter = AutoDrafter.from_pretrained(base_dir)
    with pytest.raises(ValueError, match="a drafter reads no prompt"):
        add_adapter(drafter, PrefixTuningConfig(num_virtual_tokens=2))
    with pytest.raises(ValueError, match="got dict; a drafter reads no prompt"):
        add_adapter(drafter, {"r": 4})
    with pytest.raises(ValueError, match="modules_to_save"):
        add_adapter(copy.deepcopy(drafter), lora(target_modules=["markov_w2", "q_proj"]))
    with pytest.raises(ValueError, match="has an adapter already"):
        add_adapter(add_adapter(drafter, lora(target_modules="all-linear")), lora())


def test_adapters_that_cannot_be_loaded(base_dir, target, tmp_path):
    add_adapter(AutoDrafter.from_pretrained(base_dir), lora()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for base, message in (
        (None, "does not say which drafter"),
        ("/no/such/drafter", "/no/such/drafter, which cannot be loaded"),
    ):
        path.write_text(json.dumps(config | {"base_model_name_or_path": base}))
        with pytest.raises(ValueError, match=message):
            AutoDrafter.from_pretrained(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        AutoDrafter.from_pretrained(tmp_path)
    other = tmp_path / "other"
    DSparkModel.from_target(target, num_hidden_layers=1, intermediate_size=16, num_taps=2).save_pretrained(other)
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(other)}))
    with pytest.raises(ValueError, match="does not fit its drafter"):
        AutoDrafter.from_pretrained(tmp_path)


def test_a_drafter_adapted_to_a_fine_tuned_target(make_trainer, target, rows, tmp_path):
    folders = {}
    for name, seed in (("original", 1), ("tuned", 2)):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(target.config)
        folders[name] = tmp_path / name
        model.save_pretrained(folders[name])
    original, tuned = (LlamaForCausalLM.from_pretrained(folder).eval() for folder in folders.values())
    base_dir = tmp_path / "drafter"
    DSparkModel.from_target(original, num_hidden_layers=1, block_size=4, markov_rank=8).save_pretrained(base_dir)
    drafter = AutoDrafter.from_pretrained(base_dir)
    with pytest.raises(ValueError, match=r"drafter.bind\(target, check_name=False\)"):
        drafter.bind(tuned)
    drafter.bind(tuned, check_name=False)
    like = make_trainer(tmp_path / "adapter", rows, drafter=DSparkModel.from_target(target, num_hidden_layers=1))
    trainer = DraftTrainer(drafter, tuned, like.args, train_dataset=rows, peft_config=lora())
    trainer.train()
    trainer.save_model()
    loaded = AutoDrafter.from_pretrained(tmp_path / "adapter")
    assert loaded.config.target_name_or_path == "tuned"
    prompt = torch.tensor([rows[0]["input_ids"][:3]])
    assert torch.equal(answer(tuned, loaded, prompt)[0], tuned.generate(prompt, **GREEDY))
    with pytest.raises(ValueError, match="was made for tuned"):
        answer(original, loaded, prompt)


def test_a_lora_target(make_trainer, target, rows, tmp_path):
    torch.manual_seed(0)
    tuned = get_peft_model(
        copy.deepcopy(target),
        lora(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    ).eval()
    drafter = DSparkModel.from_target(tuned, num_hidden_layers=1, block_size=4, markov_rank=8, num_anchors=8)
    assert drafter.is_bound_to(tuned) and drafter.is_bound_to(tuned.get_base_model())
    assert drafter.config.target_fingerprint is not None
    like = make_trainer(tmp_path, rows, drafter=DSparkModel.from_target(target, num_hidden_layers=1))
    trainer = DraftTrainer(drafter, tuned, like.args, train_dataset=rows)
    ids = torch.tensor([rows[0]["input_ids"]])
    adapted = tuned(ids, output_hidden_states=True).hidden_states[2]
    assert torch.equal(trainer.features(ids)[0][..., :32], adapted)
    assert not torch.equal(target(ids, output_hidden_states=True).hidden_states[2], adapted)
    trainer.train()
    prompts = torch.tensor([row["input_ids"][:3] for row in rows[:2]])
    for model in (tuned, tuned.get_base_model()):
        assert torch.equal(answer(model, drafter.eval(), prompts)[0], tuned.generate(prompts, **GREEDY))
    with_head = get_peft_model(copy.deepcopy(target), lora(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="output head carries an adapter"):
        DraftTrainer(DSparkModel.from_target(target), with_head, like.args, train_dataset=rows)


def test_an_adapter_does_not_warn(base_dir):
    """PEFT asks a model for what transformers has renamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert not add_adapter(AutoDrafter.from_pretrained(base_dir), lora()).is_gradient_checkpointing
