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
        asked = f"{chosen!r}" if name else f"{chosen!r} of DCAE_DEVICE"
        raise ValueError(
            f"device {asked} cannot be used ({str(error).splitlines()[0]}); name another, or none"
        ) from error
