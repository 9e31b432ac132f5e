"""What engines demand, held against checkpoints that lack it."""

import json

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma4TextConfig
from transformers.utils import logging

from dspark_hf import AutoDrafter, DFlashModel, DSparkConfig, DSparkModel, Eagle3Model
from dspark_hf.publishing.engines import ENGINES, Checkpoint, get_engine, not_served

FLAT = {
    "architectures": ["Qwen3DSparkModel"], "model_type": "qwen3", "block_size": 7, "markov_rank": 8,
    "markov_head_type": "vanilla", "vocab_size": 260, "sample_from_anchor": True, "mask_token_id": 258,
    "target_layer_ids": [0, 2], "hidden_size": 32,
}  # fmt: skip
SPECULATORS = {
    "architectures": ["DSparkSpeculator"], "speculators_model_type": "dspark", "block_size": 7, "markov_rank": 8,
    "markov_head_type": "vanilla", "draft_vocab_size": 260, "sample_from_anchor": True, "mask_token_id": 258,
    "transformer_layer_config": {"model_type": "qwen3", "vocab_size": 260, "hidden_size": 32},
    "aux_hidden_state_layer_ids": [1, 3],
    "speculators_config": {
        "default_proposal_method": "greedy", "verifier": {"name_or_path": "org/Model"},
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 7}],
    },
}  # fmt: skip
GEMMA = {"architectures": ["Gemma4DSparkModel"], "model_type": "gemma4_text"}
SLIDES = {"layer_types": ["sliding_attention"]}
OWN_PACKAGING = ["reads its own packaging alone"]


@pytest.mark.parametrize(
    ("changes", "vllm", "sglang", "llama_cpp"),
    [
        ({}, [], [], []),
        ({"markov_head_type": "rnn"}, ["vanilla sequential head only, not rnn"], [], ["head only, not rnn"]),
        ({"markov_head_type": None}, [], ["needs markov_head_type, one of vanilla"], []),
        ({"markov_rank": 0}, [], ["needs a sequential head"], ["by its sequential head"]),
        ({"draft_vocab_size": 100}, [r"needs the output head's rows .* \(lm_head.weight\)"], ["no reduced"],
         ["reads a reduced"]),
        ({"draft_vocab_size": 100, "own_lm_head": True}, [], ["no reduced"], ["reads a reduced"]),
        ({"draft_vocab_size": 260}, [], [], []),
        ({"architectures": ["LlamaDSparkModel"]}, *[["no LlamaDSparkModel$"]] * 3),
        (GEMMA, ["attention_k_eq_v must be true"], ["no Gemma4"], ["no Gemma4"]),
        (GEMMA | {"attention_k_eq_v": True}, [], ["no Gemma4"], ["no Gemma4"]),
        (GEMMA | {"attention_k_eq_v": True} | SLIDES, ["all 'full_attention'"], ["no Gemma4", "needs? sliding"],
         ["no Gemma4"]),
        (GEMMA | {"attention_k_eq_v": True, "draft_vocab_size": 9}, ["no reduced"], ["no Gemma4", "no reduced"],
         ["no Gemma4", "reads a reduced"]),
        (SLIDES, [], ["sliding_window"], []),
        ({"mask_token_id": 260}, [], ["a token of the target, got 260"], []),
        ({"sample_from_anchor": False}, [], [], ["lets the anchor draft"]),
        ({"ttt_length": 7}, ["EAGLE-3 .* speculators' packaging alone"], ["SpecForge's packaging"], ["not known"]),
    ],
    ids=str,
)  # fmt: skip
def test_flat(changes, vllm, sglang, llama_cpp):
    checkpoint = Checkpoint(FLAT | changes)
    for name, expected in (("vllm", vllm), ("sglang", sglang), ("llama.cpp", llama_cpp),
                           ("speculators", OWN_PACKAGING)):  # fmt: skip
        assert_told(get_engine(name).problems(checkpoint), expected)
    told = not_served(checkpoint)
    assert len(told) == bool(vllm) + bool(sglang) + bool(llama_cpp)
    assert all(" will not serve this drafter: " in sentence for sentence in told)


@pytest.mark.parametrize(("changes", "kind"), [
    ({"model_type": "llama"}, "dspark drafter of llama"), ({"markov_head_type": "domino"}, "domino drafter of qwen3"),
])  # fmt: skip
def test_no_conversion_is_advised_that_would_be_refused(changes, kind):
    checkpoint = Checkpoint(FLAT | changes | {"draft_vocab_size": 100, "sample_from_anchor": False})
    told = [problem for engine in ENGINES.values() for problem in engine.problems(checkpoint)]
    assert not any("--format speculators" in problem for problem in told)
    assert f"it reads its own packaging alone, which has no place for a {kind} layers" in told


def test_a_family_that_no_engine_has_is_told_with_the_one_that_they_have():
    checkpoint = Checkpoint(FLAT | {"architectures": ["LlamaDSparkModel"], "model_type": "llama"})
    assert not_served(checkpoint)[-1] == (
        "No engine has llama draft layers: family=qwen3 makes a drafter of those they have."
    )


def assert_told(problems, expected):
    assert len(problems) == len(expected), problems
    for problem, pattern in zip(problems, expected, strict=True):
        pytest.raises(ValueError, raised, problem).match(pattern)


def raised(text):
    raise ValueError(text)


def layers(**changes):
    return {"transformer_layer_config": SPECULATORS["transformer_layer_config"] | changes}


def speculation(**changes):
    return {"speculators_config": SPECULATORS["speculators_config"] | changes}


@pytest.mark.parametrize(
    ("changes", "vllm", "speculators", "llama_cpp"),
    [
        ({}, [], [], []),
        ({"markov_head_type": "gated"}, ["head only, not gated"], [], ["head only, not gated"]),
        (layers(model_type="llama"), ["Qwen3 layers .* these are llama"], ["Qwen3 layers"], ["Qwen3 layers"]),
        (speculation(verifier={}), ["verifier.name_or_path, which is missing"], ["embedding from the target"], []),
        (speculation(proposal_methods=[]), ["speculative_tokens, which is missing"], ["must be one of .* \\[\\]"], []),
        ({"speculators_model_type": "dflash", "markov_rank": 0}, ["sample_from_anchor must be false"], [],
         ["by its sequential head"]),
        ({"speculators_model_type": "mtp"}, ["kind mtp is not known"], [], []),
        (layers(is_causal=True), [], ["see their whole block there"], []),
        ({"speculators_model_type": "eagle3"} | layers(model_type="gemma4_text"), ["no EAGLE-3 of gemma4_text"], [],
         ["not known here"]),
    ],
    ids=str,
)  # fmt: skip
def test_speculators(changes, vllm, speculators, llama_cpp):
    checkpoint = Checkpoint(SPECULATORS | changes)
    for name, expected in (("vllm", vllm), ("speculators", speculators), ("llama.cpp", llama_cpp),
                           ("sglang", ["does not read speculators' packaging"])):  # fmt: skip
        assert_told(get_engine(name).problems(checkpoint), expected)


def test_a_reduced_vocabulary_needs_rows_in_the_checkpoint():
    shapes = {"fc.weight": (32, 64), "hidden_norm.weight": (32,), "d2t": (100,), "lm_head.weight": (100, 32),
              "markov_head.markov_w1.weight": (260, 8), "markov_head.markov_w2.weight": (100, 8)}  # fmt: skip
    for config in (FLAT, SPECULATORS):
        config = config | {"draft_vocab_size": 100}
        assert ENGINES["vllm"].problems(Checkpoint(config, shapes)) == []
        for missing in ("d2t", "lm_head.weight"):
            held = {name: shape for name, shape in shapes.items() if name != missing}
            (problem,) = ENGINES["vllm"].problems(Checkpoint(config, held))
            assert missing in problem and "--format speculators" in problem
    told = ENGINES["speculators"].problems(Checkpoint(SPECULATORS | {"draft_vocab_size": 100}, held))
    assert told == ["it needs the rows of the output head (lm_head.weight) of a reduced draft vocabulary"]


def test_tensors_that_contradict_their_config(tmp_path, tiny_target_dir):
    target = AutoModelForCausalLM.from_pretrained(tiny_target_dir)
    fields = {"family": "qwen3", "num_hidden_layers": 1, "target_layer_ids": [0, 2], "markov_rank": 8}
    DSparkModel.from_target(target, **fields).save_pretrained(tmp_path)
    assert not_served(Checkpoint.read(tmp_path)) == []
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"target_layer_ids": [0, 1, 2]}))
    told = not_served(Checkpoint.read(tmp_path))
    assert len(told) == 3 and all("fc.weight has the shape [32, 64], and its config.json asks for [32, 96]" in one
                                  for one in told)  # fmt: skip
    sizes = {name: config[name] for name in config if name not in ("hidden_size", "vocab_size")}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"mask_token_id": None}))
    assert "its config.json does not say hidden_size and vocab_size" in not_served(Checkpoint.read(tmp_path))[0]
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["hidden_norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "it lacks the tensor hidden_norm.weight" in not_served(Checkpoint.read(tmp_path))[0]
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert "hold parts that wrappers put there, as model.confidence_head" in not_served(Checkpoint.read(tmp_path))[0]
    save_file({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert "`dspark convert DRAFTER FOLDER` writes them without" in not_served(Checkpoint.read(tmp_path))[0]


def test_what_is_no_drafter_that_stands_alone(tmp_path):
    with pytest.raises(ValueError, match="no config.json in"):
        Checkpoint.read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"dspark_block_size": 5}))
    with pytest.raises(ValueError, match="is a target with its drafter inside"):
        Checkpoint.read(tmp_path)
    with pytest.raises(ValueError, match="engine called 'tgi' here; known are vllm, sglang, llama.cpp, speculators"):
        get_engine("tgi")


@pytest.mark.parametrize("model_cls", [DSparkModel, DFlashModel, Eagle3Model])
def test_a_line_when_saving(model_cls, tmp_path, tiny_target_dir, caplog):
    logger = logging.get_logger("dspark_hf.modeling.drafter")
    type(logger).warning_once.cache_clear()
    drafter = model_cls.from_target(
        AutoModelForCausalLM.from_pretrained(tiny_target_dir), num_hidden_layers=1, target_layer_ids=[0, 2]
    )
    drafter.save_pretrained(tmp_path)
    drafter.save_pretrained(tmp_path)
    told = [
        record.message
        for record in caplog.records
        if "this drafter: " in record.message or "No engine" in record.message
    ]
    assert len(told) == len(set(told)) == 3 + (model_cls is not Eagle3Model)
    assert told == not_served(Checkpoint.read(tmp_path))
    AutoDrafter.from_pretrained(tmp_path).save_pretrained(tmp_path / "again", is_main_process=False)


def test_gemma_4s_own_drafter_is_served_by_vllm_where_values_are_keys():
    fields = dict(vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
                  num_key_value_heads=2, head_dim=8, global_head_dim=8, num_global_key_value_heads=1,
                  hidden_size_per_layer_input=0, num_kv_shared_layers=0)  # fmt: skip
    for k_eq_v in (True, False):
        target = Gemma4TextConfig(**fields, attention_k_eq_v=k_eq_v)
        config = DSparkConfig.from_target(target, num_hidden_layers=1, target_layer_ids=[0, 2])
        told = ENGINES["vllm"].problems(Checkpoint(json.loads(config.to_json_string())))
        assert bool(told) != k_eq_v
