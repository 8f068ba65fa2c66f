"""Steps as CUDA graphs: what is captured and replayed, by a capture that only calls again. Its speed needs a GPU."""

from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import MagicMock, call

import pytest
import torch
from several import CONFIG, PICTURES, equal, l1_task

from dcae_lib import training
from dcae_lib.loop import SingleProcess, fit
from dcae_lib.scale import graph
from dcae_lib.scale.graph import Graphs, side_by_side


@pytest.fixture
def captured(monkeypatch):
    """Captures, each a list of the batches that it was replayed with."""
    found = []

    def capture(run):
        loss, batches = torch.zeros(()), []
        found.append(batches)
        return lambda: batches.append(loss.copy_(run())), loss

    monkeypatch.setattr(graph, "capture", capture)
    monkeypatch.setattr(graph, "side_by_side", iter)
    return found


def test_replayed_steps_are_those_of_the_plain_loop(captured):
    config = replace(CONFIG, epochs=4, clip=None, optimizer_args=dict(precondition_frequency=3))
    task = l1_task(config)
    plain, graphed = fit(task, config, PICTURES), fit(task, config, PICTURES, parallel=Graphs())
    assert equal(plain, graphed) and len(graphed.history) == 4
    assert len(captured) == 2  # with a refresh and without
    short = len(PICTURES.train) % config.batch_size > 0  # a batch at the end of each epoch that is no replay
    steps = config.epochs * graphed.steps_per_epoch
    first = 4  # up to the first refresh after that which makes the bases
    assert sum(map(len, captured)) == steps - first - short * (config.epochs - first // graphed.steps_per_epoch)


def test_a_resumed_run_is_launched_kernel_by_kernel_up_to_a_refresh(captured):
    config = replace(CONFIG, clip=None, optimizer_args=dict(precondition_frequency=2))
    state = fit(l1_task(config), config, PICTURES)
    graphs = Graphs()
    x = next(PICTURES.train.batches(config.batch_size))
    for _ in range(3):
        graphs.take_step(state, lambda x: state.task.loss(state.model, x).detach(), x)
    assert not captured


def test_stacks_are_branches_of_the_graph(monkeypatch):
    cuda = MagicMock()
    cuda.current_stream.return_value, cuda.Stream.side_effect = cuda.trunk, [cuda.one, cuda.two]
    monkeypatch.setattr(torch, "cuda", cuda)
    for stack in side_by_side([1, 2]):
        cuda.work(stack)
    enter, leave = call.stream().__enter__(), call.stream().__exit__(None, None, None)
    first = [call.one.wait_stream(cuda.trunk), call.stream(cuda.one), enter, call.work(1), leave]
    second = [call.two.wait_stream(cuda.trunk), call.stream(cuda.two), enter, call.work(2), leave]
    ends = [call.trunk.wait_stream(cuda.one), call.trunk.wait_stream(cuda.two)]
    assert cuda.mock_calls == [call.current_stream(), call.Stream(), call.Stream(), *first, *second, *ends]


@pytest.mark.parametrize(
    "device, size, optimizer, graphed",
    [("cuda", 1, "SOAP", True), ("cpu", 1, "SOAP", False), ("cuda", 2, "SOAP", False), ("cuda", 1, "AdamW", False)],
)
def test_graphs_are_used_on_a_gpu_by_one_process_with_soap(device, size, optimizer, graphed, monkeypatch):
    @contextmanager
    def processes(name):
        several = SingleProcess()
        several.size = size
        yield several, torch.device(device)

    def start(task, config, splits, hooks, parallel, device):
        raise InterruptedError(type(parallel).__name__)

    monkeypatch.setattr(training, "processes", processes)
    monkeypatch.setattr(training, "fit", start)
    with pytest.raises(InterruptedError, match="Graphs" if graphed else "SingleProcess"):
        training.train(replace(CONFIG, optimizer=optimizer, optimizer_args={}), splits=PICTURES)
