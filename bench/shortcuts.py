"""How much faster each fused shortcut is than the chain of operations that defines it; one thread, one process."""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from dcae_lib import blocks
from dcae_lib.device import keep_memory
from dcae_lib.runs.record import processor
from dcae_lib.rearrange import average_channels, channel_to_space, duplicate_channels, space_to_channel

RESULT = Path(__file__).resolve().parents[1] / "results" / "bench" / "shortcuts.json"

upsample = nn.Upsample(scale_factor=2, mode="nearest")

# What each name in dcae_lib.blocks is defined to be, on the shapes of the default model: (chain, input, channels out).
CHAINS = {
    "pool_down": (lambda x, out: F.avg_pool2d(average_channels(space_to_channel(x, 2), out), 2), (16, 32, 32), 32),
    "pool_up": (lambda x, out: duplicate_channels(upsample(channel_to_space(x, 2)), out), (32, 8, 8), 16),
    "direct_down": (lambda x, out: average_channels(space_to_channel(x, 4), out), (16, 32, 32), 32),
    "direct_up": (lambda x, out: channel_to_space(duplicate_channels(x, 16 * out), 4), (32, 8, 8), 16),
}


def timed(shortcut, x: torch.Tensor, out: int, slope: torch.Tensor) -> dict[str, float]:
    """Milliseconds of one pass forward, one backward, and both."""
    start = time.process_time()                             # CPU time: what else runs on the machine does not count
    y = shortcut(x, out)
    middle = time.process_time()
    torch.autograd.grad(y, x, slope)
    end = time.process_time()
    return dict(forward=1e3 * (middle - start), backward=1e3 * (end - middle), both=1e3 * (end - start))


def measure(rounds: int, batch: int) -> dict[str, dict]:
    """Medians over rounds; in every round fused and chain take turns, so that what slows the machine slows both."""
    results = {}
    for name, (chain, shape, out) in CHAINS.items():
        fused = getattr(blocks, name)
        x = torch.randn(batch, *shape, requires_grad=True)
        slope = torch.randn_like(chain(x, out))
        times = {"fused": [], "chain": []}
        for k in range(rounds + 3):
            pair = [("fused", fused), ("chain", chain)]
            for who, shortcut in pair if k % 2 else reversed(pair):
                times[who].append(timed(shortcut, x, out, slope))
        results[name] = {
            who: {part: median(row[part] for row in rows[3:]) for part in rows[0]}     # the first three warm up
            for who, rows in times.items()
        }
        found = results[name]
        found["chain_over_fused"] = {part: found["chain"][part] / found["fused"][part] for part in found["fused"]}
    return results


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shortcuts = measure(options.rounds, options.batch)
    record = dict(
        unit="milliseconds of CPU time, median",
        batch=options.batch,
        rounds=options.rounds,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        processor=processor(),
        shortcuts={
            name: {who: {part: float(f"{value:.4g}") for part, value in row.items()} for who, row in rows.items()}
            for name, rows in shortcuts.items()
        },
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")

    print(f"{processor()}, one thread, batch {options.batch}; milliseconds forward + backward, and chain over fused:")
    print(f"{'shortcut':12} {'chain':>15} {'fused':>15} {'forward':>8} {'backward':>8} {'both':>6}")
    for name, rows in shortcuts.items():
        chain, fused = (f"{rows[who]['forward']:.2f} + {rows[who]['backward']:.2f}" for who in ("chain", "fused"))
        forward, backward, both = rows["chain_over_fused"].values()
        print(f"{name:12} {chain:>15} {fused:>15} {forward:7.1f}× {backward:7.1f}× {both:5.1f}×")


if __name__ == "__main__":
    main()
