"""The device that computes."""

import os

import torch


def best_device(name: str | None = None) -> torch.device:
    """Return the named device; without a name that in DCAE_DEVICE, else CUDA, else Apple's MPS, else the CPU.

    Raises ValueError if the device cannot be used.
    """
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    chosen = name or os.environ.get("DCAE_DEVICE") or best
    try:
        return torch.zeros(0, device=chosen).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {chosen!r} cannot be used ({reason}); name another, or none") from error
