"""What is set up in a process: its device, Ctrl-C that waits for the end of a step, memory that is kept, one thread for small work."""

import ctypes
import os
import platform
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def asked_device(name: str | None = None) -> str | None:
    """The named device, else the one in the environment variable DCAE_DEVICE; None: nobody asked for one."""
    return name or os.environ.get("DCAE_DEVICE") or None


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """A list that Ctrl-C puts something into, instead of stopping in the middle of a step; the second one stops at once.

    Where Ctrl-C is ignored, as in what a shell script starts in the background, it stays so; other threads than the
    main one get no signals.
    """
    seen: list[int] = []

    def note(number, frame):
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield seen
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def no_interrupts() -> Iterator[None]:
    """Within, a Ctrl-C is lost, so let it be short; processes that are forked or spawned within ignore it for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def keep_memory() -> None:
    """Have glibc keep what is freed for the next step, instead of giving it back and faulting it in anew."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**30)                             # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**25)                             # M_MMAP_THRESHOLD, the greatest that it takes


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes on one thread: many small steps take longer when several have to meet after each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def best_device(name: str | None = None) -> torch.device:
    """The named device; without a name that in DCAE_DEVICE, else CUDA, else Apple's MPS, else the CPU. ValueError if it is not there."""
    chosen = asked_device(name) or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.zeros(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:         # AssertionError: torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {chosen!r}{'' if name else ' of DCAE_DEVICE'} cannot be used ({reason}); name another, or none for the best") from error
