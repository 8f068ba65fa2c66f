"""Measure where a training step's time goes on one core, and how far it is from what the core could do.

`python bench/step.py` times a step in turns with steps that lack one part each, and every convolution on its own.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from harness import here, in_turns, one_thread, parser, save
from torch import nn

from dcae_lib import DCAE, SOAP, to_model
from dcae_lib.blocks import NormActConv, NormActUp

MODEL = dict(groups=1)
BATCH, STEPS = 32, 10  # steps in a round: one refresh of the bases among them
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def model_without(*parts: int) -> DCAE:
    """Return the model with parts of every unit left out: 0 is its norm, 1 its activation."""
    model = DCAE(**MODEL)
    for unit in model.modules():
        if isinstance(unit, NormActConv | NormActUp):
            for part in parts:
                unit[part] = nn.Identity()
    return model


def steps(model: DCAE, precision: str, batch: int = BATCH, optimized: bool = True) -> float:
    """Take steps and return the CPU milliseconds of each."""
    optimizer = model.__dict__.setdefault("optimizer", SOAP(model.parameters(), lr=1e-4))
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    for _ in range(STEPS):
        x = to_model(images)
        with torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext():
            loss = F.l1_loss(model(x), x)
        loss.backward()
        if optimized:
            optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - start) / STEPS * 1e3


def layers(precision: str) -> tuple[list[Callable[[], None]], list[float], float]:
    """Return each convolution's forward and backward pass on its own, its GFLOP, and the MB of all activations."""
    seen, moved = [], 0.0

    def note(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal moved
        moved += output.numel() * output.element_size() / 1e6
        if isinstance(module, CONVOLUTIONS):
            seen.append((module, inputs[0].detach(), output.detach()))

    model, autocast = DCAE(**MODEL), partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bfloat16")
    for module in model.modules():
        if not list(module.children()) and not isinstance(module, nn.Dropout | nn.Identity):
            module.register_forward_hook(note)
    with torch.no_grad(), autocast():
        model(to_model(torch.zeros(BATCH, 3, 32, 32, dtype=torch.uint8)))

    def both_passes(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        x = x.requires_grad_(module is not model.encoder.stem)
        with autocast():
            out = module(x)
        torch.autograd.grad(out, [p for p in (x, *module.parameters()) if p.requires_grad], y)

    def gflop(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
        places = (x if isinstance(module, nn.ConvTranspose2d) else y)[:, 0].numel()
        passes = 2 if module is model.encoder.stem else 3
        return 2 * passes * places * module.weight.numel() / 1e9

    for module in model.modules():
        module._forward_hooks.clear()
    return [partial(both_passes, *one) for one in seen], [gflop(*one) for one in seen], moved


def copy_speed() -> float:
    """Return the GB/s, read and written, of copying 8 MB."""
    source, target = torch.rand(2, 2**21)
    seen = []
    for _ in range(20):
        start = time.process_time()
        for _ in range(20):
            target.copy_(source)
        seen.append(20 * 2 * source.numel() * 4 / 1e9 / (time.process_time() - start))
    return median(seen)


def measure(precision: str, rounds: int) -> dict:
    """Return the parts of a step in milliseconds, and its floor."""
    tasks = {
        "step": partial(steps, DCAE(**MODEL), precision),
        "norms": partial(steps, model_without(0), precision),
        "activations": partial(steps, model_without(1), precision),
        "shortcuts": partial(steps, DCAE(**MODEL | dict(shortcut="none")), precision),
        "SOAP": partial(steps, DCAE(**MODEL), precision, optimized=False),
        "one image": partial(steps, DCAE(**MODEL), precision, 1),
    }
    alone, gflop, moved = layers(precision)

    def per_call(layer: Callable[[], None]) -> float:
        start = time.process_time()
        for _ in range(STEPS):
            layer()
        return (time.process_time() - start) / STEPS * 1e3

    found = in_turns(tasks, rounds, lambda task: task())
    single = in_turns(dict(enumerate(alone)), rounds, per_call)
    each = [median(single[k]) for k in range(len(alone))]
    whole = median(found["step"])
    parts = {name: median(a - b for a, b in zip(found["step"], values)) for name, values in found.items()}
    parts = {name: parts[name] for name in ("norms", "activations", "shortcuts", "SOAP")} | {"convolutions": sum(each)}
    fastest = max(work / ms for work, ms in zip(gflop, each)) * 1e3  # GFLOP/s
    copying = copy_speed()
    floor = sum(gflop) / fastest * 1e3 + 4 * moved / copying
    row = dict(precision=precision, step=whole, one_image=median(found["one image"]), **parts)
    row |= dict(rest=whole - sum(parts.values()), gflop=sum(gflop), fastest_gflop_per_s=fastest)
    row |= dict(activations_MB=moved, copy_GB_per_s=copying, floor=floor, share=floor / whole)
    return {name: value if isinstance(value, str) else round(value, 3) for name, value in row.items()}


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__, "step", rounds=15).parse_args(arguments)
    one_thread()
    rows = [measure(precision, options.rounds) for precision in ("float32", "bfloat16")]
    for row in rows:
        print(*(f"{name} {value}" for name, value in row.items()), sep="\n", end="\n\n")
    save(options.out, dict(batch=BATCH, model=MODEL, rounds=options.rounds) | here() | dict(rows=rows))


if __name__ == "__main__":
    main()
