"""Write the numbers of the README from the files under results/: `python notebooks/readme.py`."""

import json
import re
from pathlib import Path

from dcae_lib.lesson import DOCUMENT_L1

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def results() -> str:
    """The document's table beside the recorded run, and the linear baseline."""
    run, linear = read("full/history"), read("full/03")
    lines = [
        "| epoch | training L1, the document | training L1, here | test L1 | test PSNR | test SSIM |",
        "|---|---|---|---|---|---|",
    ]
    for epoch, reported in DOCUMENT_L1.items():
        row = run["history"][epoch - 1]
        lines.append(
            f"| {epoch} | {reported:.4f} | {row['train_l1']:.4f} | {row['l1']:.4f} "
            f"| {row['psnr']:.2f} dB | {row['ssim']:.3f} |"
        )
    config, passed = run["config"], next(row for row in run["history"] if row["l1"] < min(DOCUMENT_L1.values()))
    lines += [
        "",
        f"CIFAR-10, pixels in [-1, 1], {run['parameters']:,} parameters; ours: {config['optimizer']}, batch "
        f"{config['batch_size']}, learning rate {config['lr']}, shortcut `{config['model'].get('shortcut', 'pool')}`, "
        f"{config['epochs']} epochs in {sum(row['seconds'] for row in run['history']) / 60:.0f} minutes of training on "
        f"{run['sessions'][0]['threads']} thread ({run['sessions'][0]['hardware']}). PSNR and SSIM are means over the test "
        f"images. The document's last L1 is passed in epoch {passed['epoch']}. The best linear map of each 4×4 patch "
        f"to sixteen numbers (PCA) reaches {linear['psnr_pca_16']:.2f} dB; PCA of whole images with as many numbers as "
        f"the latent, which serves one size of image only, {linear['psnr_pca_whole']:.2f} dB.",
    ]
    return "\n".join(lines)


def speed() -> str:
    """Training beside the loop that a reader would write first."""
    record = read("bench/train")
    lines = ["| training, images per second | | |", "|---|---|---|"]
    lines += [f"| {row['loop']} | {row['images_per_second']:,} | {row['times_reader']:.2f}× |" for row in record["rows"]]
    return "\n".join([*lines, "", f"In turns, in one run, batch {record['batch']}; {record['hardware']}, {record['cores']} cores."])


def soap() -> str:
    """What a step of SOAP costs, in steps of AdamW."""
    record = read("bench/soap")
    names = {"ours": "`dcae_lib.SOAP`", "pytorch_optimizer": "pytorch_optimizer", "heavyball": "heavyball, compiled"}
    kinds = list(dict.fromkeys((row["model"], row["frequency"]) for row in record["rows"]))
    times = {(row["model"], row["frequency"], row["implementation"]): row["times_adamw"] for row in record["rows"]}
    lines = ["| one step, in steps of `torch.optim.AdamW` | " + " | ".join(
        f"{model}, basis refreshed every {'step' if frequency == 1 else f'{frequency} steps'}" for model, frequency in kinds
    ) + " |", "|---|" + "---|" * len(kinds)]
    for implementation, name in names.items():
        lines.append(f"| {name} | " + " | ".join(f"{times[*kind, implementation]:.1f}" for kind in kinds) + " |")
    return "\n".join([*lines, "", f"CPU time on one thread ({record['processor']}), all of them in turns in one process."])


def costs() -> str:
    """What the two commands and the layers of the tests cost."""
    cost = read("bench/costs")
    names = {
        "results": "`make results`",
        "unit": "unit and property tests",
        "nbval": "stored outputs (nbval)",
        "papermill": "papermill, with every solution",
    }
    lines = ["| | minutes | peak memory |", "|---|---|---|"]
    for key, name in names.items():
        lines.append(f"| {name} | {cost[key]['seconds'] / 60:.1f} | {cost[key]['peak_gib']:.1f} GiB |")
    return "\n".join([*lines, "", f"Measured on {cost['processors']} processor cores, after installation."])


def written(text: str) -> str:
    """The README with everything between its markers written anew."""
    for section in (results, speed, soap, costs):
        name, lines = section.__name__, section()
        marked = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(marked, lambda m, lines=lines: f"{m[1]}{lines}\n{m[2]}", text, flags=re.S)
    return text


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
