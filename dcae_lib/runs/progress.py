"""Progress of a run, and its ends: a bar, a stop at the first loss that is NaN or infinite, and Ctrl-C."""

import math
import signal
import threading
from typing import Any

import torch
from tqdm.auto import tqdm

from ..loop import Hook, SingleProcess, State

ADVICE = "lower the learning rate, warm up for longer, or look for broken images"
CHECK_EVERY = 50  # steps between two reads of the losses, each of which waits for the device


class Progress(Hook):
    """Show a progress bar on rank 0, and raise FloatingPointError within 50 steps of a loss that is not finite."""

    def __init__(self, parallel: SingleProcess):
        self.hidden = parallel.rank > 0

    def start(self, state: State) -> None:
        steps = state.config.epochs * state.steps_per_epoch
        self.bar = tqdm(total=steps, initial=state.step, unit="step", desc="training", disable=self.hidden)

    def after_step(self, state: State) -> None:
        if len(state.losses) % CHECK_EVERY and len(state.losses) < state.steps_per_epoch:
            return
        recent = read_losses(state, CHECK_EVERY)
        self.bar.update(state.step - self.bar.n)
        speed = (self.bar.format_dict["rate"] or 0) * state.config.batch_size
        self.bar.set_postfix_str(f"{state.task.name} {sum(recent) / len(recent):.4f}, {speed:,.0f} images/s")

    def after_epoch(self, state: State) -> None:
        for name, value in state.metrics.items():  # the last step may have broken the weights
            if not math.isfinite(value):
                raise FloatingPointError(f"the test {name} became {value} after step {state.step}; {ADVICE}")

    def end(self, state: State) -> None:
        self.bar.close()
        read_losses(state)  # an optimizer that met a bad gradient stopped the run before the next read


def read_losses(state: State, count: int = 0) -> list[float]:
    """Return the last losses of this epoch, or all, waiting for the device; FloatingPointError if one is not finite."""
    values = torch.stack(state.losses[-count:]).tolist() if state.losses else []
    first = len(state.history) * state.steps_per_epoch + len(state.losses) - len(values) + 1
    for step, value in enumerate(values, first):
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} at step {step}; {ADVICE}")
    return values


class Interrupt(Hook):
    """Let the first Ctrl-C finish the step and stop the run; a second one raises KeyboardInterrupt at once.

    Not outside the main thread, which alone gets signals, nor where SIGINT is ignored (background jobs of a shell).
    """

    def __init__(self, parallel: SingleProcess):
        self.parallel, self.pressed = parallel, False
        self.previous: Any = None  # the handler from before, if this one takes its place

    def start(self, state: State) -> None:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self.previous = signal.signal(signal.SIGINT, self.press)

    def press(self, number: int, frame) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def after_step(self, state: State) -> None:
        state.stop = self.parallel.any(self.pressed or state.stop)

    def end(self, state: State) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
