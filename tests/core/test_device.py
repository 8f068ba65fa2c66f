"""The choice of a device, and the threads of a CPU."""

import pytest
import torch

from dcae_lib.device import best_device


@pytest.mark.parametrize("name", ["abacus", "cuda:99"])
def test_unusable_device_is_refused(name, monkeypatch):
    monkeypatch.setenv("DCAE_DEVICE", name)
    with pytest.raises(ValueError, match=rf"device '{name}' cannot be used \(.+\); name another, or none"):
        best_device()
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used"):
        best_device(name)
    assert best_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("cuda, mps, best", [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_best_device_is_cuda_then_mps_then_the_cpu(cuda, mps, best, monkeypatch):
    asked = []
    monkeypatch.setenv("DCAE_DEVICE", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "zeros", lambda size, device: asked.append(device) or torch.ones(size))
    best_device()
    assert asked == [best]
