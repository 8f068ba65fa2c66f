"""Training steps as CUDA graphs: a step of this network is hundreds of small kernels, launched here all at once."""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor

from ..loop import SingleProcess, State
from ..soap import SOAP


class Graphs(SingleProcess):
    """A training in one process with SOAP on a GPU: each step is replayed from a graph.

    A graph is captured of a step with and of one without a refresh of the bases. The first steps up to a refresh, in
    which libraries set themselves up, and a short batch at the end of an epoch are launched kernel by kernel.
    """

    def __init__(self) -> None:
        self.graphs: dict[tuple, tuple[Callable[[], object], Tensor]] = {}  # by what is due: replay, loss
        self.x = torch.empty(0)  # the batch, where the graphs read it
        self.steps = 0

    def take_step(self, state: State, gradients: Callable[[Tensor], Tensor], x: Tensor) -> None:
        optimizer = cast(SOAP, state.optimizer)
        self.steps += 1
        if self.steps <= optimizer.defaults["precondition_frequency"] + 1 or len(x) < state.config.batch_size:
            super().take_step(state, gradients, x)
            return
        if not self.graphs:
            self.x = x.clone()
        self.x.copy_(x)
        due = optimizer.count()
        if due not in self.graphs:
            for bundle in optimizer.bundles:
                bundle.each = side_by_side
            self.graphs[due] = capture(lambda: run(optimizer, gradients, self.x))
        replay, loss = self.graphs[due]
        replay()
        state.losses.append(loss.clone())


def run(optimizer: SOAP, gradients: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Do what the device does for a step, and return the loss."""
    loss = gradients(x)
    optimizer.gather()
    optimizer.move()
    optimizer.zero_grad()
    return loss


def side_by_side(stacks: list) -> Iterator:
    """Yield SOAP's stacks; what is done with each is a branch of its own in the graph: none of them fills a GPU."""
    trunk, branches = torch.cuda.current_stream(), [torch.cuda.Stream() for _ in stacks]
    for stack, branch in zip(stacks, branches):
        branch.wait_stream(trunk)
        with torch.cuda.stream(branch):
            yield stack
    for branch in branches:
        trunk.wait_stream(branch)


def capture(run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """Capture what `run` does as a CUDA graph; return its replay and the tensor that it writes its result to."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the device meanwhile
        result = run()
    return graph.replay, result
