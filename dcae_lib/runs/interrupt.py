"""Ctrl-C, or a notebook's stop button, ends a run after the step it is in."""

import signal
import threading
from typing import Any

from ..loop import Hook, SingleProcess, State


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
