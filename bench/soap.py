"""What a step of SOAP costs beside AdamW and beside other implementations of SOAP; one thread, in turns, one process."""

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
import torchvision
from pytorch_optimizer import SOAP as PytorchOptimizerSOAP

from dcae_lib import DCAE, SOAP
from dcae_lib.device import keep_memory
from dcae_lib.runs.record import processor

RESULT = Path(__file__).resolve().parents[1] / "results" / "bench" / "soap.json"
MODELS = {"DCAE": DCAE, "ResNet-18": torchvision.models.resnet18}


def implementations() -> dict:
    """name: a function of parameters and refresh frequency. The same settings for all, and each one's own defaults else."""
    made = {
        "torch AdamW": lambda params, frequency: torch.optim.AdamW(params, lr=1e-3),
        "ours": lambda params, frequency: SOAP(params, lr=1e-3, precondition_frequency=frequency),
        "pytorch_optimizer": lambda params, frequency: PytorchOptimizerSOAP(
            params, lr=1e-3, precondition_frequency=frequency
        ),
    }
    if find_spec("heavyball"):                              # `pip install .[bench]`; tests do without
        import heavyball

        heavyball.utils.compile_mode = "default"            # it compiles its steps; trying kernels out takes too long
        made["heavyball"] = lambda params, frequency: heavyball.SOAP(
            params, lr=1e-3, betas=(0.95, 0.95), precondition_frequency=frequency, merge_dims=False, max_precond_dim=10000
        )
    return made


def now(device: str) -> float:
    """Seconds: of CPU time on the CPU, where other work on the machine must not count; elsewhere when the device is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(model: str, frequency: int, rounds: int, device: str = "cpu") -> dict[str, float]:
    """Milliseconds per step, by implementation: the median of rounds, ten steps of each in every round."""
    torch.manual_seed(0)
    weights = list(MODELS[model]().to(device).parameters())
    gradients = [torch.randn_like(p) for p in weights]
    params = {name: [torch.nn.Parameter(p.detach().clone()) for p in weights] for name in implementations()}
    optimizers = {name: make(params[name], frequency) for name, make in implementations().items()}
    times = {name: [] for name in optimizers}
    for k in range(rounds + 1):                             # the first round makes states and is not counted
        for name in list(optimizers) if k % 2 else reversed(optimizers):
            seconds = 0.0
            for _ in range(10):                             # so many that each round holds one refresh at least
                for p, g in zip(params[name], gradients):
                    p.grad = g                              # heavyball takes gradients away
                start = now(device)
                optimizers[name].step()
                seconds += now(device) - start
            times[name].append(100 * seconds)               # milliseconds per step
    return {name: median(each[1:]) for name, each in times.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="for the DCAE; a tenth of them for ResNet-18")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--device", default="cpu", help="cpu (CPU time, one thread), or cuda (wall time)")
    parser.add_argument("--out", type=Path, help="default: results/bench/soap.json, for cuda soap_cuda.json")
    options = parser.parse_args(arguments)
    keep_memory()
    torch.set_num_threads(1)
    rows = []
    place = processor() if options.device == "cpu" else torch.cuda.get_device_name()
    unit = "CPU time" if options.device == "cpu" else "wall time"
    print(f"{place}, one thread; milliseconds of {unit} per step, and times AdamW:")
    for model in options.models:
        rounds = options.rounds if model == "DCAE" else -(-options.rounds // 10)
        for frequency in (10, 1):
            times = measure(model, frequency, rounds, options.device)
            for name, each in times.items():
                row = dict(
                    model=model, frequency=frequency, implementation=name, milliseconds=float(f"{each:.4g}"),
                    times_adamw=round(each / times["torch AdamW"], 2), times_ours=round(each / times["ours"], 2),
                )
                rows.append(row)
                print(f"{model:10} refresh every {frequency:2}  {name:18} {each:10.2f} {row['times_adamw']:8.2f}×")
    record = dict(unit=f"milliseconds of {unit} per step, median", rounds=options.rounds, threads=1,
                  torch=torch.__version__, processor=place, rows=rows)
    out = options.out or (RESULT if options.device == "cpu" else RESULT.with_name("soap_cuda.json"))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
