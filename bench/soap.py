"""Compare the time of a step of SOAP with AdamW and with other implementations of SOAP, in turns on one thread."""

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median

import torch
import torchvision
from harness import here, in_turns, one_thread, parser, ratio, save
from pytorch_optimizer import SOAP as PytorchOptimizerSOAP

from dcae_lib import DCAE, SOAP

MODELS = {"DCAE": DCAE, "ResNet-18": torchvision.models.resnet18}
STEPS = 10  # so many that each round holds one refresh at least


def implementations(frequency: int) -> dict[str, Callable]:
    """Return {name: a function of parameters}, all with the same settings, and otherwise each with its defaults."""
    made = {
        "torch AdamW": partial(torch.optim.AdamW, lr=1e-3),
        "torch AdamW, fused": partial(torch.optim.AdamW, lr=1e-3, fused=True),
        "ours": partial(SOAP, lr=1e-3, precondition_frequency=frequency),
        "pytorch_optimizer": partial(PytorchOptimizerSOAP, lr=1e-3, precondition_frequency=frequency),
    }
    if find_spec("heavyball"):  # `pip install .[bench]`; tests do without
        import heavyball

        heavyball.utils.compile_mode = "default"  # it compiles its steps; trying kernels out takes too long
        settings = dict(lr=1e-3, betas=(0.95, 0.95), merge_dims=False, max_precond_dim=10000)
        made["heavyball"] = partial(heavyball.SOAP, precondition_frequency=frequency, **settings)
    return made


def now(device: str) -> float:
    """Return seconds: of CPU time on the CPU, where other processes do not count; else wall time, with the GPU done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(model: str, frequency: int, rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Return the milliseconds of a step by implementation, one value per round."""
    torch.manual_seed(0)
    weights = list(MODELS[model]().to(device).parameters())
    gradients = [torch.randn_like(p) for p in weights]

    def steps(optimizer: torch.optim.Optimizer) -> float:
        seconds = 0.0
        for _ in range(STEPS):
            for p, gradient in zip(optimizer.param_groups[0]["params"], gradients):
                p.grad = gradient  # heavyball takes gradients away
            start = now(device)
            optimizer.step()
            seconds += now(device) - start
        return 1e3 * seconds / STEPS

    optimizers = {
        name: make([torch.nn.Parameter(p.detach().clone()) for p in weights])
        for name, make in implementations(frequency).items()
    }
    return in_turns(optimizers, rounds, steps)


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, "soap", rounds=40)
    command.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), help="ResNet-18: a tenth as often"
    )
    command.add_argument("--device", default="cpu", help="cpu (CPU time), or cuda (wall time, into soap_cuda.json)")
    options = command.parse_args(arguments)
    if options.device != "cpu" and options.out == command.get_default("out"):
        options.out = options.out.with_stem("soap_cuda")
    one_thread()
    rows = []
    for model in options.models:
        rounds = options.rounds if model == "DCAE" else -(-options.rounds // 10)
        for frequency in (10, 1):
            times = measure(model, frequency, rounds, options.device)
            for name, values in times.items():
                row = dict(model=model, frequency=frequency, implementation=name, milliseconds=round(median(values), 3))
                row |= dict(times_adamw=round(ratio(values, times["torch AdamW"]), 2))
                row |= dict(times_ours=round(ratio(values, times["ours"]), 2))
                rows.append(row)
                print(*row.values(), sep="\t", flush=True)
    unit = f"milliseconds of {'CPU' if options.device == 'cpu' else 'wall'} time per step, median"
    record = dict(unit=unit, rounds=options.rounds, torch=torch.__version__)
    save(options.out, record | here(options.device) | dict(rows=rows))


if __name__ == "__main__":
    main()
