"""Losses of a training: kept on the device, read now and then, and refused when they are not finite."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm

CHECK_EVERY = 50            # steps between two looks at the losses; each look waits for the device once


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message says at which step."""


class LossWatch:
    """Losses of one epoch, kept on the device and read every 50 steps, so that no step waits for the device.

    `together` makes means over all processes of what each of them has: they all look at the same step.
    """

    def __init__(
        self, name: str, read: list[float], bar: tqdm, batch_size: int, before: int, together: Callable[[Tensor], Tensor]
    ):
        self.name, self.together = name, together
        self.read, self.bar, self.batch_size, self.before = read, bar, batch_size, before   # steps before this epoch
        self.pending: list[Tensor] = []

    def append(self, loss: Tensor) -> None:
        self.pending.append(loss.detach())
        if len(self.pending) == CHECK_EVERY:
            self.look()

    def look(self) -> None:
        if not self.pending:
            return
        values = self.together(torch.stack(self.pending)).tolist()
        for i, value in enumerate(values, self.before + len(self.read) + 1):
            if not math.isfinite(value):
                raise NonFiniteLoss(
                    f"the loss became {value} at step {i}; "
                    "lower the learning rate, warm up for longer, or look for broken images"
                )
        self.pending.clear()
        self.read += values
        self.bar.update(len(values))
        rate = (self.bar.format_dict["rate"] or 0) * self.batch_size
        self.bar.set_postfix_str(f"{self.name} {sum(values) / len(values):.4f}, {rate:,.0f} images/s")

    def guard(self, step: Callable[[], object]) -> None:
        """Take an optimizer step, which may meet what is not finite before the next look does."""
        try:
            step()
        except FloatingPointError as error:
            self.look()
            raise NonFiniteLoss(f"the loss is finite, but {error}; lower the learning rate") from error

    def mean(self) -> float:
        """Mean loss over the steps of the epoch."""
        self.look()
        return sum(self.read) / len(self.read)
