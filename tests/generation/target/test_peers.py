"""Two processes that share a target, whose forward passes need both of them."""

import multiprocessing
import os
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from fake_drafters import TableDrafter, greedy_oracle
from tiny_targets import make_prompt, make_target
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from dspark_hf import DSparkModel, PrefixScheduler, SpeculationConfig, StepCost
from dspark_hf.modeling.cache_name import CACHE_NAME

LENGTHS = ((5, 3), (9, 24))


def in_two_processes(run, tmp_path):
    """Call `run(rank)` in two processes of one group; returns what each returned."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def worker(rank):
        try:
            torch.set_num_threads(1)
            dist.init_process_group(
                "gloo", init_method=f"file://{tmp_path}/store", rank=rank, world_size=2, timeout=timedelta(seconds=600)
            )
            results.put((rank, run(rank), None))
            dist.destroy_process_group()
        except Exception as error:
            results.put((rank, None, repr(error)))
        finally:
            results.close()
            results.join_thread()
            os._exit(0)

    workers = [context.Process(target=worker, args=(rank,)) for rank in range(2)]
    for process in workers:
        process.start()
    (_, first, *errors), (_, second, error) = sorted(results.get(timeout=900) for _ in workers)
    for process in workers:
        process.join()
    assert [*errors, error] == [None, None]
    return first, second


def share(target):
    """Let every use of the target's modules wait for the other process; returns what was used."""
    used = []

    def wait(module, args, kwargs):
        dist.all_reduce(torch.zeros(1))
        used.append(type(module).__name__)

    for module in (target, target.get_input_embeddings(), target.get_output_embeddings()):
        module.register_forward_pre_hook(wait, with_kwargs=True)
    return used


def inputs(rank, num_rows):
    num_prompt, num_new = LENGTHS[rank]
    return make_prompt(num_prompt, seed=rank, batch_size=num_rows), num_new


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("slow_rank", [0, 1])
def test_rounds_go_on_until_all_have_ended(num_rows, slow_rank, tmp_path):
    target = make_target("mistral")
    drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
    # Rows of a batch end at different places.
    ids, num_new = inputs(1, num_rows)
    eos = int(target.generate(ids, max_new_tokens=num_new, do_sample=False)[-1, ids.shape[1] + 9])

    def run(rank):
        ids, num_new = inputs(rank ^ slow_rank, num_rows)
        kwargs = {"max_new_tokens": num_new, "do_sample": False, "eos_token_id": eos}
        expected = target.generate(ids, **kwargs)
        used = share(target)
        out = target.generate(ids, assistant_model=drafter, synced_gpus=True, return_dict_in_generate=True, **kwargs)
        assert out.sequences.tolist() == expected.tolist()
        # Nothing of the idle rounds is left.
        assert out[CACHE_NAME].get_seq_length() == out.sequences.shape[1] - 1
        return used, drafter.last_stats.rounds

    (used, rounds), (other_used, other_rounds) = in_two_processes(run, tmp_path)
    assert used == other_used and rounds != other_rounds
    assert used.count("Embedding") >= 2 * max(rounds, other_rounds)


def test_sharded_target(tmp_path):
    def run(rank):
        target = make_target()
        ids, num_new = inputs(rank, 2)
        plain = target.generate(ids, max_new_tokens=num_new, do_sample=False).tolist()
        drafter = DSparkModel.from_target(target, block_size=4, markov_rank=8, num_hidden_layers=1)
        for module in (*target.model.layers, target.model.embed_tokens, target.lm_head, target):
            fully_shard(module, mesh=dist.init_device_mesh("cpu", (2,)))
        kwargs = {"max_new_tokens": num_new, "do_sample": False}
        # Without being told: generate() sees that the target is sharded.
        return plain, target.generate(ids, assistant_model=drafter, **kwargs).tolist()

    for plain, out in in_two_processes(run, tmp_path):
        assert out == plain


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "temperature": 0.9}], ids=str)
def test_processes_of_a_tensor_parallel_target_decide_alike(options, tmp_path):
    """Each draws from a generator of its own, and one's drafts, lengths and draws count."""
    source = make_target()
    source.save_pretrained(tmp_path / "target")
    drafter = DSparkModel.from_target(source, block_size=4, markov_rank=8, num_hidden_layers=1, num_taps=2).eval()
    drafter.config.target_name_or_path = None
    ids = make_prompt(7, batch_size=3)
    options = {"max_new_tokens": 20, "return_dict_in_generate": False, **options}
    plain = None if options["do_sample"] else source.generate(ids, **options).tolist()

    def run(rank):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        with warnings.catch_warnings():
            # The argument has another name in later releases.
            warnings.simplefilter("ignore", FutureWarning)
            target = AutoModelForCausalLM.from_pretrained(tmp_path / "target", tp_plan="auto").eval()
        assert target.tp_size == 2
        torch.manual_seed(rank)
        outs = []
        for speculation in (
            SpeculationConfig(check_target=False),
            SpeculationConfig(check_target=False, prompt_lookup=True, confidence_threshold=0.3),
            SpeculationConfig(check_target=False, verification="token", seed=rank),
        ):
            out = target.generate(ids, assistant_model=drafter, speculation=speculation, **options)
            outs.append((out.tolist(), list(drafter.last_stats.accepted_lens)))
        return outs

    first, second = in_two_processes(run, tmp_path)
    assert first == second
    if plain is not None:
        assert [out for out, _ in first] == [plain] * 3


@pytest.mark.cost
def test_the_first_ones_table_is_for_all(tmp_path):
    """Also of processes with rows of their own: each is given another table, and goes by that of the first."""
    target = make_target()
    ids = make_prompt(6)

    def run(rank):
        seconds = [[1.0, 1.01, 1.02, 1.03], [1.0, 2.0, 4.0, 8.0]][rank]
        cost = StepCost([1, 2, 4, 8], [1], [seconds], [1], [0.01])
        speculation = SpeculationConfig(policy=PrefixScheduler(step_cost=cost), prompt_lookup=False)
        verified = []
        for options in ({}, {"synced_gpus": True}):
            drafter, plain = greedy_oracle(target, ids, [3], max_new_tokens=30)
            out = target.generate(
                ids, assistant_model=drafter, speculation=speculation, max_new_tokens=30, do_sample=False, **options
            )
            assert out.tolist() == plain.tolist()
            verified.append(drafter.last_stats.verified_tokens)
        return verified

    (first, with_second), (second, with_first) = in_two_processes(run, tmp_path)
    assert first > 20 and second == 0
    assert with_second == with_first == first


def test_what_would_get_out_of_step(target, tmp_path):
    """Chunks, drafters that embed tokens as they read, targets that replay tokens."""
    token_reader = TableDrafter(64)
    token_reader.reads_tokens = True
    replaying = make_target()
    replaying._is_stateful, replaying.config.model_type = True, "qwen3_next"
    cases = (
        (target, TableDrafter(64), {"prefill_chunk_size": 4}, "prefill_chunk_size, which makes as many passes"),
        (target, token_reader, {}, "TableDrafter, which embeds tokens whenever it reads"),
        (replaying, TableDrafter(64), {}, "LlamaForCausalLM, which processes some tokens again"),
    )

    def run(rank):
        for model, drafter, kwargs, message in cases:
            with pytest.raises(
                ValueError, match=f"synced_gpus=True and a drafter are not supported together with {message}"
            ):
                model.generate(make_prompt(5), assistant_model=drafter, synced_gpus=True, **kwargs)

    assert in_two_processes(run, tmp_path) == (None, None)
