"""Rounds captured in CUDA graphs: what a round launches is recorded once, and then replayed with a single launch."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dspark_hf.generation.request import Request

_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training"}


class CapturedRounds:
    """CUDA graphs of rounds on one set of buffers, one for each key, in one pool of memory.

    A key's first round runs as it is, on the stream that captures: kernels are chosen, code is compiled and libraries
    make their workspaces then. Its second round is captured, which runs nothing, and proven: replayed, undone, and run
    as it is, which is the round that counts. Where a capture raises, or a replay comes to something else, a warning
    says so, and all rounds run as they are from then on.

    Args:
        device (`torch.device`): A CUDA device.

    Attributes:
        num_graphs (`int`): Graphs so far.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._warm: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        # Tensors that graphs read by address, and nobody else may keep.
        self._held: list[Any] = []
        self._host: Tensor | None = None
        self._is_off = False

    @property
    def num_graphs(self) -> int:
        """How many were captured."""
        return len(self._graphs)

    def run(self, key: Hashable, launch: Callable[[], None], changed: Sequence[Tensor], held: Any = None) -> None:
        """Run a round.

        Args:
            key (`Hashable`): All that two rounds with one graph have in common, besides what stands in tensors.
            launch (`Callable`): The round. It must not wait for the device.
            changed (`Sequence[Tensor]` of any shapes): What a round reads and changes: as it was, the round can be
                run again.
            held (`Any`, *optional*): What must live as long as the graph.
        """
        if self._is_off:
            launch()
        elif key in self._graphs:
            self._graphs[key].replay()
        elif key in self._warm and self._capture(key, launch, held):
            self._prove(key, launch, changed)
        else:
            self._warm.add(key)
            self._run_beside(launch)

    def _run_beside(self, launch: Callable[[], None]) -> None:
        """A round as it is, on the stream that captures."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            launch()
        current.wait_stream(self._stream)

    def _prove(self, key: Hashable, launch: Callable[[], None], changed: Sequence[Tensor]) -> None:
        """Run a round that was just captured, and see whether its graph comes to the same."""
        before, drawn = [tensor.clone() for tensor in changed], torch.cuda.get_rng_state(self._device)
        self._graphs[key].replay()
        replayed = [tensor.clone() for tensor in changed]
        for tensor, values in zip(changed, before, strict=True):
            tensor.copy_(values)
        torch.cuda.set_rng_state(drawn, self._device)
        self._run_beside(launch)
        # Token ids differ by one at least; what a head says of them may differ by rounding.
        if all(torch.allclose(*pair, 0, 0.1, True) for pair in zip(changed, replayed, strict=True)):
            return
        self._is_off = True
        warnings.warn(
            "A round captured in a CUDA graph came to other tokens than the same round as it is. Rounds run as they "
            "are, so that what is generated is right; please report this with what `dspark env` prints.",
            stacklevel=2,
        )

    def read(self, report: Tensor) -> Tensor:
        """A copy of a `report` of any shape on the host, when all that was launched before is done."""
        if self._host is None or self._host.shape[1:] != report.shape[1:] or len(self._host) < len(report):
            self._host = torch.empty(report.shape, dtype=report.dtype, pin_memory=True)
        host = self._host[: len(report)]
        host.copy_(report, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return host.clone()

    def _capture(self, key: Hashable, launch: Callable[[], None], held: Any) -> bool:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile.
            mode = "thread_local"
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
                launch()
        except Exception as error:  # whatever a model does that a graph cannot hold
            self._is_off = True
            told = " ".join(str(error).split())[:200]
            warnings.warn(
                f"Rounds are not captured in CUDA graphs, and run as they are: {type(error).__name__}: {told}",
                stacklevel=2,
            )
            return False
        self._graphs[key] = graph
        self._held.append(held)
        return True


def why_not_captured(request: Request) -> str | None:
    """What a replay would leave out or repeat wrongly; None where rounds may be captured.

    Args:
        request ([`Request`]): What is to be generated.
    """
    if request.device.type != "cuda":
        return "the target is not on a CUDA device"
    if request.speculation.seed is not None:
        return "a seed has a generator of its own in each call"
    for module in _modules(request):
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if any(getattr(hook, "__module__", None) != "transformers.utils.output_capturing" for hook in hooks):
            return f"{type(module).__name__} has hooks, which a replay does not call"
    return None


def options_of(request: Request, vocab_size: int) -> tuple:
    """What a call's rounds depend on besides tensors: two calls with the same have the same graphs.

    Args:
        request ([`Request`]): What is to be generated.
        vocab_size (`int`): Tokens that the target tells apart.
    """
    speculation = request.speculation
    configs = [request.model.config.get_text_config(decoder=True)]
    configs += [request.drafter.config.decoder_config] if request.has_draft_model else []
    return (
        bool(request.generation_config.do_sample),
        speculation.verification,
        speculation.num_candidates,
        speculation.compile,
        vocab_size,
        tuple(_frozen(processor) for processor in request.logits_processor),
        torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda"),
        torch.is_inference_mode_enabled(),
        tuple(config._attn_implementation for config in configs),
        # Adapters are switched, and dropout and merged weights turned on, by what modules hold besides tensors.
        hash(tuple(_settings(module) for module in _modules(request))),
    )


def addresses_of(request: Request) -> int:
    """A number that changes when weights are moved or replaced: graphs hold the addresses of the old.

    Args:
        request ([`Request`]): What is to be generated.
    """
    tensors = [tensor for model in _models(request) for tensor in (*model.parameters(), *model.buffers())]
    return hash(tuple(tensor.data_ptr() for tensor in tensors))


def _models(request: Request) -> list[nn.Module]:
    if not request.has_draft_model:
        return [request.model]
    borrowed = getattr(request.drafter, "borrowed", None)
    return [request.model, request.drafter, *([] if borrowed is None else [borrowed.lm_head])]


def _modules(request: Request) -> Iterator[nn.Module]:
    for model in _models(request):
        yield from model.modules()


def _settings(module: nn.Module) -> tuple:
    """What a module holds in plain values, and in lists and dicts of them, besides what every module holds."""
    # What is None may yet become an object, which is not compared.
    return type(module), *(
        (name, repr(value))
        for name, value in vars(module).items()
        if name not in _OF_EVERY_MODULE and value is not None and _is_plain(value)
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool | None)


def _frozen(value: Any) -> Any:
    """A processor, or what it holds, as something that can be compared."""
    if isinstance(value, Tensor):
        return tuple(value.flatten().tolist())
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, str | int | float | bool | None):
        return value
    return type(value), tuple((name, _frozen(part)) for name, part in sorted(vars(value).items()))
