"""A whole round as one graph: verify, accept, read features, draft. No break, no recompilation, no open size, and
nothing that a CUDA graph cannot hold.
"""

from types import FunctionType

import pytest
import torch
from scripted_drafters import scripted
from tiny_targets import make_prompt, make_target, padded_prompts
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._inductor.utils import get_first_incompatible_cudagraph_node

from dspark_hf import DSparkModel, SpeculationConfig
from dspark_hf.generation.static import round, runner

STATIC = {"cache_implementation": "static", "do_sample": False}


class WholeRounds:
    """Rounds of chosen buckets go through torch.compile, each bucket once; a second graph of one raises."""

    def __init__(self, monkeypatch, widths=None, backend=None):
        torch._dynamo.reset()
        counters.clear()
        self.graphs, self.num_rounds, self.addresses = {}, 0, set()
        self._step, self._compiled = round.StaticRound.step, {}
        self._widths, self._backend = widths, backend
        monkeypatch.setattr(round.StaticRound, "step", lambda *args: self._run(*args))
        read = runner.StaticRunner._read
        monkeypatch.setattr(runner.StaticRunner, "_read", lambda this, report: self._note(this) or read(this, report))

    def _note(self, this):
        self.addresses.add(tuple(tensor.data_ptr() for tensor in this._buffers.tensors()))

    def _run(self, this, view, bucket):
        self.num_rounds += 1
        if self._widths is not None and bucket.width not in self._widths:
            self._step(this, view, bucket)
            return
        key = bucket, view.candidates is not None
        if key not in self._compiled:
            # Code is kept with a function's code object; inner functions become part of the graph.
            own = FunctionType(self._step.__code__.replace(), self._step.__globals__)
            graphs = self.graphs[key] = []
            collect = aot_autograd(fw_compiler=lambda graph, inputs: graphs.append(graph) or graph.forward)
            self._compiled[key] = torch.compile(own, fullgraph=True, dynamic=False, backend=self._backend or collect)
        with torch._dynamo.config.patch(error_on_recompile=True):
            self._compiled[key](this, view, bucket)

    def check(self):
        """One graph for each bucket, of fixed sizes, that a CUDA graph could hold; buffers stayed where they were."""
        assert sum(counters["graph_break"].values()) == 0
        assert self.graphs
        for graphs in self.graphs.values():
            (graph,) = graphs
            inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
            assert all(type(value) is not torch.SymInt for value in inputs)
            sizes = [size for value in inputs if isinstance(value, torch.Tensor) for size in value.shape]
            assert all(isinstance(size, int) for size in sizes)
            assert get_first_incompatible_cudagraph_node(graph) is None


def generate(target, ids, mask, pattern, num_new, drafter=None, num_rows=None, **fields):
    """Greedy tokens of the first rows are plain ones; the drafter, which knows all rows."""
    made, plain = scripted(target, ids, pattern, num_new, mask, num_hidden_layers=1, target_layer_ids=[0, 1])
    if drafter is None:
        drafter = made
    else:
        # The same buffers hold the next script, at the same addresses.
        for name in ("truth", "num_rounds"):
            getattr(drafter, name).copy_(getattr(made, name))
    speculation = SpeculationConfig(policy="fixed", **fields)
    ids, mask, plain = ids[:num_rows], mask[:num_rows], plain[:num_rows]
    out = target.generate(
        ids, attention_mask=mask, assistant_model=drafter, speculation=speculation, max_new_tokens=num_new, **STATIC
    )
    assert out.tolist() == plain.tolist()
    assert drafter.last_stats.round_kind == "static"
    return drafter


def test_a_round_is_one_graph(monkeypatch):
    target = make_target(num_hidden_layers=3)
    whole = WholeRounds(monkeypatch, widths={6})
    ids, mask = padded_prompts([5, 14])
    drafter = generate(target, ids, mask, [0, 5, 2, 1, 3, 4], 60)
    assert set(drafter.last_stats.accepted_lens) == set(range(6))
    whole.check()
    assert len(whole.addresses) == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_every_bucket_is_one_graph_over_many_rounds(monkeypatch, family):
    target, pattern = make_target(family, num_hidden_layers=3), [0, 5, 0, 1, 0, 2, 0, 3, 0, 4]
    whole, accepted, drafter = WholeRounds(monkeypatch), set(), None
    for batch_size in (1, 4):
        addresses = len(whole.addresses)
        # Prompts of one length, so that the script has one shape; padding differs.
        for seed, lens in enumerate(([20, 5, 12, 2], [20, 20, 3, 9], [20, 1, 19, 7])):
            ids, mask = padded_prompts(lens, seed=seed)
            for fields in ({}, {"max_draft_len": 3}, {"max_draft_len": 1}):
                drafter = generate(target, ids, mask, pattern, 40, drafter, batch_size, **fields)
                accepted |= set(drafter.last_stats.accepted_lens)
        assert len(whole.addresses) == addresses + 1
        runner.release(target)
    assert whole.num_rounds > 200 and accepted == set(range(6))
    whole.check()
    verified = {(bucket.rows, bucket.width) for bucket, _ in whole.graphs if bucket.width > 0}
    # Rows that have ended leave, so there is a bucket of two, too; four never have a single token left at once.
    assert verified >= {(1, 1)} | {(rows, width) for rows in (1, 4) for width in (2, 4, 6)}


@pytest.mark.slow
@pytest.mark.parametrize("verification", ["block", "token"])
def test_a_drawn_round_is_one_graph(monkeypatch, verification):
    target = make_target()
    drafter = DSparkModel.from_target(target, target_layer_ids=[0, 2], mask_token_id=63, markov_rank=8, block_size=5)
    whole = WholeRounds(monkeypatch)
    speculation = SpeculationConfig(policy="fixed", verification=verification)
    for _ in range(2):
        target.generate(
            make_prompt(5, batch_size=2), assistant_model=drafter, speculation=speculation, max_new_tokens=40,
            do_sample=True, temperature=0.8, top_k=20, cache_implementation="static",
        )  # fmt: skip
    whole.check()


@pytest.mark.slow
def test_a_round_as_generated_code_is_exact(monkeypatch):
    target = make_target(num_hidden_layers=3)
    WholeRounds(monkeypatch, widths={6}, backend="inductor")
    ids, mask = padded_prompts([5, 14])
    generate(target, ids, mask, [0, 5, 2, 1, 3, 4], 40)
    assert sum(counters["graph_break"].values()) == 0
