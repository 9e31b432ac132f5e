"""CUDA graphs of rounds, on a machine without a GPU: when one is captured, and what it may be replayed for."""

import contextlib
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tiny_targets import make_prompt, make_target
from transformers.generation import logits_process

from dspark_hf import DSparkModel, SpeculationConfig
from dspark_hf.generation.static import graphs, runner


class FakeCuda:
    """What captures are made with, on a machine without a GPU: a graph is the list of what was launched in it."""

    def __init__(self, monkeypatch, fails=False):
        self.log, cuda = [], torch.cuda
        stream = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(cuda, "Stream", lambda device: stream)
        monkeypatch.setattr(cuda, "current_stream", lambda device=None: stream)
        monkeypatch.setattr(cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(cuda, "get_rng_state", lambda device: torch.get_rng_state())
        monkeypatch.setattr(cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
        monkeypatch.setattr(cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: self.log.append("replay")))

        @contextlib.contextmanager
        def graph(graph, pool, stream, capture_error_mode):
            assert pool == "pool"
            self.log.append("capture")
            if fails:
                raise RuntimeError("operation not permitted when stream is capturing")
            yield

        monkeypatch.setattr(cuda, "graph", graph)


def test_a_round_runs_once_is_captured_and_then_replayed(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    rounds = graphs.CapturedRounds(torch.device("cuda"))
    for key in ("a", "b", "a", "a", "b"):
        rounds.run(key, lambda key=key: cuda.log.append(key), [])
    # What was captured ("capture", "a") is replayed once, and run as it is.
    assert cuda.log == ["a", "b", "capture", "a", "replay", "a", "replay", "capture", "b", "replay", "b"]
    assert rounds.num_graphs == 2


def test_what_cannot_be_captured_runs_as_it_is(monkeypatch):
    cuda = FakeCuda(monkeypatch, fails=True)
    rounds = graphs.CapturedRounds(torch.device("cuda"))
    rounds.run("a", lambda: cuda.log.append("a"), [])
    with pytest.warns(UserWarning, match="not captured in CUDA graphs, and run as they are: RuntimeError: operation"):
        rounds.run("a", lambda: cuda.log.append("a"), [])
    rounds.run("a", lambda: cuda.log.append("a"), [])
    assert cuda.log == ["a", "capture", "a", "a"]
    assert rounds.num_graphs == 0


@pytest.mark.parametrize(("step", "is_right"), [(1, True), (1.01, True), (2, False), (float("nan"), False)])
def test_a_graph_is_proven_before_it_counts(monkeypatch, step, is_right):
    FakeCuda(monkeypatch)
    state, rounds = torch.zeros(3, dtype=torch.float64), graphs.CapturedRounds(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: state.add_(step)))
    # What `graph` captures is launched by the stand-in.
    launch, is_captured = (lambda: state.add_(0 if is_captured else 1)), False
    rounds.run("a", launch, [state])
    capture = rounds._capture

    def captured(*args):
        nonlocal is_captured
        is_captured = True
        result, is_captured = capture(*args), False
        return result

    monkeypatch.setattr(rounds, "_capture", captured)
    with contextlib.nullcontext() if is_right else pytest.warns(UserWarning, match="came to other tokens"):
        rounds.run("a", launch, [state])
    assert state.tolist() == [2] * 3
    rounds.run("a", launch, [state])
    assert state.tolist() == [3 if not is_right else 2 + step] * 3


def test_draws_are_compared_from_the_same_state(monkeypatch):
    FakeCuda(monkeypatch)
    state, rounds = torch.zeros(3), graphs.CapturedRounds(torch.device("cuda"))
    launch = partial(torch.Tensor.uniform_, state, 0, 100)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=launch))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        rounds.run("a", launch, [state])
        rounds.run("a", launch, [state])
    assert rounds.num_graphs == 1


def test_a_call_whose_graphs_are_wrong_is_right(monkeypatch):
    class Wrong(Played):
        def _capture(self, key, launch, held):
            self._graphs[key] = SimpleNamespace(replay=lambda: None)
            return True

    FakeCuda(monkeypatch)
    monkeypatch.setattr(runner, "CapturedRounds", Wrong)
    monkeypatch.setattr(runner, "why_not_captured", lambda request: None)
    with pytest.warns(UserWarning, match="came to other tokens"):
        num_captured(*make_pair())


def test_a_call_goes_on_where_a_capture_raises(monkeypatch):
    FakeCuda(monkeypatch, fails=True)
    monkeypatch.setattr(runner, "CapturedRounds", type("Read", (graphs.CapturedRounds,), {"read": Played.read}))
    monkeypatch.setattr(runner, "why_not_captured", lambda request: None)
    target, drafter = make_pair()
    with pytest.warns(UserWarning, match="not captured in CUDA graphs, and run as they are"):
        assert num_captured(target, drafter) == 0
    # It is tried once on these buffers.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert num_captured(target, drafter) == 0


def test_processors_are_told_apart_by_what_they_hold():
    def frozen(*processors):
        return tuple(map(graphs._frozen, processors))

    one, other = (logits_process.TemperatureLogitsWarper(value) for value in (0.7, 0.8))
    assert frozen(one) == frozen(logits_process.TemperatureLogitsWarper(0.7)) != frozen(other)
    suppress = partial(logits_process.SuppressTokensLogitsProcessor, device="cpu")
    assert frozen(suppress([1, 2])) == frozen(suppress([1, 2])) != frozen(suppress([1, 3]))
    hash(frozen(one, suppress([1])))


class Played(graphs.CapturedRounds):
    """Replays a round as it was launched when it was captured, whatever a later call would launch."""

    def _capture(self, key, launch, held):
        self._graphs[key] = SimpleNamespace(replay=launch)
        return True

    def read(self, report):
        return report.clone()


@pytest.fixture
def played(monkeypatch):
    """Takes the CPU for a device on which rounds are captured."""
    FakeCuda(monkeypatch)
    monkeypatch.setattr(runner, "CapturedRounds", Played)
    monkeypatch.setattr(runner, "why_not_captured", lambda request: None)


def make_pair():
    target = make_target()
    torch.manual_seed(1)
    drafter = DSparkModel.from_target(target, target_layer_ids=[0, 2], mask_token_id=63, markov_rank=8, block_size=4)
    return target, drafter


def num_captured(target, drafter, seed=0, batch_size=2, **options):
    """Graphs that a call and its repetition capture, whose tokens are plain ones where they are greedy."""
    ids, num_graphs = make_prompt(9, seed=seed, batch_size=batch_size), 0
    options = {"do_sample": False, "max_new_tokens": 20} | options
    speculation = SpeculationConfig(policy="fixed", static=True)
    # What runs once in the first is captured in the second.
    for _ in range(2):
        torch.manual_seed(seed)
        out = target.generate(ids, assistant_model=drafter, speculation=speculation, **options)
        if not options["do_sample"]:
            assert out.tolist() == target.generate(ids, **options).tolist()
        assert drafter.last_stats.round_kind == "static"
        num_graphs += drafter.last_stats.graphs
    return num_graphs


def test_graphs_live_on_over_calls(played):
    target, drafter = make_pair()
    assert num_captured(target, drafter) > 0
    kept = runner._kept[target].graphs
    # Another text may end in a bucket of its own.
    assert num_captured(target, drafter) == 0 and num_captured(target, drafter, seed=1) <= 2
    assert runner._kept[target].graphs is kept
    # Fewer rows have buckets of their own, on the same buffers.
    assert num_captured(target, drafter, batch_size=1) > 0
    assert num_captured(target, drafter, batch_size=1) == num_captured(target, drafter) == 0
    # Larger buffers stand elsewhere.
    assert num_captured(target, drafter, batch_size=4) > 0
    assert num_captured(target, drafter) > 0
    runner.release(target)
    assert num_captured(target, drafter) > 0


def test_a_graph_is_for_options_that_are_the_same(played):
    target, drafter = make_pair()
    drawn = partial(num_captured, target, drafter, do_sample=True)
    assert num_captured(target, drafter) > 0
    assert drawn(temperature=0.7) > 0
    assert drawn(temperature=0.7) == 0
    assert drawn(temperature=0.8) > 0 and drawn(temperature=0.7, top_k=7) > 0
    assert num_captured(target, drafter) == drawn(temperature=0.8) == 0


def doubled(target):
    target.model.layers[1].self_attn.scaling *= 2


def moved(target):
    target.lm_head.weight = torch.nn.Parameter(2 * target.lm_head.weight.detach())


def switched(target):
    # As the adapters of PEFT are.
    target.model.layers[1].mlp.active_adapters = ["other"]


@pytest.mark.parametrize("change", [doubled, moved, switched], ids=lambda change: change.__name__)
def test_a_target_that_computes_otherwise_is_captured_anew(played, change):
    target, drafter = make_pair()
    assert num_captured(target, drafter) > 0
    change(target)
    drafter.bind(target)
    assert num_captured(target, drafter) > 0
    assert num_captured(target, drafter) == 0


def test_weights_that_change_in_place_need_no_other_graph(played):
    target, drafter = make_pair()
    assert num_captured(target, drafter) > 0
    kept = runner._kept[target].graphs
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.mul_(1.5)
    num_captured(target, drafter)
    assert runner._kept[target].graphs is kept


def test_another_drafter_has_graphs_of_its_own(played):
    target, drafter = make_pair()
    assert num_captured(target, drafter) > 0
    other = DSparkModel.from_target(target, target_layer_ids=[0, 2], mask_token_id=63, markov_rank=8, block_size=4)
    assert num_captured(target, other) > 0


@pytest.mark.parametrize("what", ["a seed", "hooks"])
def test_what_a_replay_would_leave_out(what, monkeypatch):
    target, drafter = make_pair()
    speculation = SpeculationConfig(static=True, seed=1 if what == "a seed" else None)
    if what == "hooks":
        target.lm_head.register_forward_hook(lambda *args: None)
    monkeypatch.setattr(graphs.Request, "device", property(lambda request: torch.device("cuda")))
    with pytest.warns(UserWarning, match=f"not captured in CUDA graphs: .*{what}"):
        target.generate(make_prompt(5), assistant_model=drafter, speculation=speculation, max_new_tokens=4)
    assert drafter.last_stats.round_kind == "static"
