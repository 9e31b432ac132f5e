"""Targets whose output head is quantised: what reads it as a matrix unpacks it, or says that it cannot."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_target import VOCAB, make_target
from torch import nn

from dspark_hf import AutoDrafter, DraftTrainer, DraftTrainingArguments, DSparkModel
from dspark_hf.modeling.fingerprint import target_fingerprint
from dspark_hf.modeling.plain_head import plain_weight


class Packed(torch.Tensor):
    """A weight in int8 that unpacks itself where it is multiplied with, as tensor classes of torchao do."""

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight):
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.packed = (weight / self.scale).round().to(torch.int8)

    def dequantize(self):
        return self.packed * self.scale

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            return F.linear(args[0], args[1].dequantize(), *args[2:])
        if function is torch.Tensor.detach:
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(f"{function} of a packed tensor")


class Int8Linear(nn.Module):
    """A head that alone knows what its weight means."""

    def __init__(self, head):
        super().__init__()
        packed = Packed(head.weight.detach())
        self.weight = nn.Parameter(packed.packed, requires_grad=False)
        self.scale = packed.scale

    def forward(self, hidden):
        return F.linear(hidden, self.weight * self.scale)


def quantise(target, how):
    target = copy.deepcopy(target)
    if how == "packed":
        target.lm_head.weight = nn.Parameter(Packed(target.lm_head.weight.detach()), requires_grad=False)
    elif how == "torchao":
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(target.lm_head, quantization.Int8WeightOnlyConfig())
    else:
        target.lm_head = Int8Linear(target.lm_head)
    return target


@pytest.fixture(scope="module")
def target():
    return make_target()


def make_drafter(target, **fields):
    torch.manual_seed(1)
    defaults = dict(num_hidden_layers=1, block_size=4, markov_rank=8, num_taps=3, num_anchors=4)
    return DSparkModel.from_target(target, **{**defaults, **fields}).eval()


def train(target, folder, **fields):
    rows = [{"input_ids": list(range(3, 20)), "loss_mask": [False] * 2 + [True] * 15}]
    args = DraftTrainingArguments(str(folder), max_steps=1, report_to="none", num_eval_prompts=0, disable_tqdm=True)
    trainer = DraftTrainer(make_drafter(target, **fields), target, args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    return trainer.evaluate()["eval_l1"]


@pytest.mark.parametrize("how", ["packed", "torchao"])
@pytest.mark.parametrize("fields", [{}, {"draft_vocab_size": 20}])
def test_a_head_that_unpacks_itself(target, tmp_path, how, fields):
    quantised = quantise(target, how)
    # A digest would not be that of the checkpoint.
    assert target_fingerprint(quantised) is None and target_fingerprint(target) is not None
    drafter = make_drafter(quantised, **fields)
    if fields:
        drafter.choose_vocabulary(range(30, 50))
    prompt = torch.arange(3, 9).unsqueeze(0)
    options = dict(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
    drafted = quantised.generate(prompt, assistant_model=drafter, **options)
    assert torch.equal(drafted, quantised.generate(prompt, **options))
    plain = copy.deepcopy(target)
    plain.lm_head.weight.data = plain_weight(quantised.lm_head)
    assert plain_weight(quantised.lm_head).shape == (VOCAB, 32)
    assert train(quantised, tmp_path / "a", **fields) == pytest.approx(train(plain, tmp_path / "b", **fields))


def test_a_head_that_only_it_can_read(target, tmp_path):
    quantised = quantise(target, "module")
    drafter = make_drafter(quantised)
    prompt = torch.arange(3, 9).unsqueeze(0)
    options = dict(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
    drafted = quantised.generate(prompt, assistant_model=drafter, **options)
    assert torch.equal(drafted, quantised.generate(prompt, **options))
    message = r"output head \(Int8Linear\) holds a weight of torch.int8, which cannot be read .*modules_to_not_convert"
    with pytest.raises(ValueError, match=message):
        train(quantised, tmp_path)
    with pytest.raises(ValueError, match=message):
        make_drafter(quantised, draft_vocab_size=20).start(1)


def test_weights_that_cannot_be_compared_are_no_proof(target, tmp_path):
    target.save_pretrained(tmp_path / "Model-A")
    drafter = make_drafter(type(target).from_pretrained(tmp_path / "Model-A"))
    drafter.save_pretrained(tmp_path / "drafter")
    quantised = quantise(target, "packed")
    quantised.config.name_or_path = quantised.name_or_path = "org/Model-A-int8"
    drafter = AutoDrafter.from_pretrained(tmp_path / "drafter")
    drafter.config.target_name_or_path = "org/Model-A"
    with pytest.raises(ValueError, match="Model-A-int8 is another model: the names differ, .*cannot be compared"):
        drafter.bind(quantised)
    quantised.name_or_path = "org/Model-A"
    assert drafter.bind(quantised).is_bound_to(quantised)
