"""The device that computes, and how a CPU keeps its memory."""

import ctypes
import os
import platform

import torch


def asked_device(name: str | None = None) -> str | None:
    """Return the named device, else the one in the environment variable DCAE_DEVICE, else None."""
    return name or os.environ.get("DCAE_DEVICE") or None


def best_device(name: str | None = None) -> torch.device:
    """Return the named device; without a name that in DCAE_DEVICE, else CUDA, else Apple's MPS, else the CPU.

    Raises ValueError if the device cannot be used.
    """
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    chosen = asked_device(name) or best
    try:
        return torch.zeros(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        source = "" if name else " of DCAE_DEVICE"
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {chosen!r}{source} cannot be used ({reason}); name another, or none for the best"
        ) from error


def keep_memory() -> None:
    """Let glibc keep freed memory for the next step instead of returning it to the system and faulting it in anew."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, its maximum
