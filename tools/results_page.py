"""Write the numbers of the README from the files under results/: `python tools/results_page.py`."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

from dcae_lib.course import DOCUMENT_L1

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"

# What was changed in each of the ablations of bench/runs.py.
CHOICES = {
    "ablation-adamw": "AdamW instead of SOAP, its learning rate tuned",
    "ablation-direct": '`shortcut="direct"`',
    "ablation-no-shortcut": '`shortcut="none"`',
    "ablation-dropout-0.01": "dropout 0.01",
    "ablation-dropout-0.05": "dropout 0.05",
    "ablation-no-zero-init": "residual branches do not start at zero",
    "ablation-groups-8": "8 groups in each norm instead of 1",
    "ablation-groups-32": "one channel per group",
}


# What a notebook teaches, and which it builds on.
COURSE = {
    "00": ("load, encode, decode, measure; can you tell the copy?", ()),
    "01": ("smaller without losing a pixel; averaging and duplicating", ()),
    "02": ("the unit, the sum, shortcuts without parameters, zero-init", ("01",)),
    "03": ("assembling it; PCA as the line to beat; training in twelve lines", ("02",)),
    "04": ("the right axes to step along: Adam, Shampoo, SOAP; a fair race", ("03",)),
    "05": ("the loop written out; forty epochs; what each choice is worth; surviving a kill", ("03",)),
    "06": ("eight explorers: channels, a brush, your own picture, directions, levels, reach; why photos go through in tiles",
           ("03", "05")),
    "07": ("rounding, entropy, a coder in thirty lines, the file byte by byte", ("05", "06")),
    "08": ("training for few bits; a belief about the next number; curves, and how they lie; a byte budget", ("07",)),
    "09": ("larger pictures, more of them, more processes, sweeps", ("05", "06")),
}
WORDS, LINES, EXERCISE = 150, 10, 10                        # words and lines of code a minute; minutes for an exercise
PATHS = {
    "One lesson of 90 minutes": ("00", "01", "02"),
    "First week": ("00", "01", "02"), "second": ("03", "04"), "third": ("05", "06"), "fourth": ("07", "08", "09"),
}


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def reading(number: str) -> tuple[str, str, int, int]:
    """A notebook's title and file, the minutes to read it, to five, and the number of its exercises."""
    path = next((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = {kind: "".join("".join(cell["source"]) + "\n" for cell in cells if cell["cell_type"] == kind) for kind in ("markdown", "code")}
    prose = re.sub(r"<details>.*?</details>", "", text["markdown"], flags=re.S)
    minutes = len(prose.split()) / WORDS + text["code"].count("\n") / LINES
    exercises = len(re.findall(r"^\*\*\d\.", text["markdown"].partition("## Check yourself")[2], re.M))
    return re.match(r"# \d\d · (.+)", text["markdown"])[1], path.name, 5 * round(minutes / 5), exercises


def course() -> str:
    """The map on one page: what depends on what, minutes, and three paths."""
    found = {number: reading(number) for number in COURSE}
    seconds = read("bench/costs").get("notebooks", {})
    lines = ["| | notebook | teaches | needs | read | run | exercises |", "|---|---|---|---|---|---|---|"]
    for number, (teaches, needs) in COURSE.items():
        title, file, minutes, exercises = found[number]
        run = f"{seconds[number]:.0f} s" if number in seconds else ""
        lines.append(
            f"| {number} | [{title}](notebooks/{file}) | {teaches} | {', '.join(needs) or '–'} | {minutes} min | {run} "
            f"| {exercises}, {EXERCISE * exercises} min |"
        )
    read_all, do_all = sum(entry[2] for entry in found.values()), EXERCISE * sum(entry[3] for entry in found.values())
    ways = [f"{name}: {', '.join(numbers)} ({sum(found[n][2] for n in numbers)} min)" for name, numbers in PATHS.items()]
    return "\n".join([
        *lines, "",
        f"Minutes at {WORDS} words and {LINES} lines of code a minute, and {EXERCISE} for an exercise; seconds to run, two at a time, a thread each.",
        "",
        f"- **{ways[0]}**, reading and running, no exercises.",
        f"- **A course of four weeks.** {'; '.join(ways[1:])}; with the exercises between the meetings.",
        f"- **On your own.** In order, about {read_all / 60:.0f} hours to read and {do_all / 60:.0f} for exercises. "
        "04 can be skipped if the optimizer does not interest you, 07 and 08 if bits do not.",
    ])


def picture() -> str:
    """What the first picture shows."""
    record = read("full/picture")
    means = {name: mean(values) for name, values in record["psnr"].items()}
    return (
        f"*The first test image of each class in the sample, and the best that each codec makes of it in {record['budget']} bytes; mean PSNR at "
        f"the right. Bytes that all files of a codec share are not counted, for any of them ({', '.join(means)}: "
        f"{', '.join(f'{value:.1f}' for value in means.values())} dB). On photographs it is otherwise: [see below](#compression).*"
    )


def scale() -> str:
    """Several processes beside one, and what streaming costs."""
    record, rows = read("bench/distributed"), read("bench/stream")["rows"]
    lines = ["| batch | a step in one process | in two | times as fast |", "|---|---|---|---|"]
    for row in record["steps"]:
        alone, together = row["seconds"]["alone"], row["seconds"]["together"]
        lines.append(f"| {row['batch']} | {1e3 * alone:.0f} ms | {1e3 * together:.0f} ms | {alone / together:.2f} |")
    few, many = ({kind: next(r for r in rows if r["kind"] == kind and r["count"] == count and r["workers"] == 1)
                  for kind in ("files", "shards")} for count in (min(r["count"] for r in rows), max(r["count"] for r in rows)))
    drift = record["drift"]
    equal = all(all(ways.values()) for ways in record["same_bits"].values())
    same = "all processes hold the same bits" if equal else "the processes do not hold the same bits"
    return "\n".join([
        *lines, "",
        f"One thread for each process, gloo on one machine ({record['hardware']}). After {record['after_steps']} steps {same}. Beside one "
        f"process, whose sums are rounded otherwise, their weights differ by up to {max(drift['float32'].values()):.1g} in float32, "
        f"{max(drift['float64'].values()):.1g} in float64, and {max(drift['float64, eps 1e-6'].values()):.1g} in float64 with an eps of 1e-6.",
        "",
        f"Streaming {many['files']['count']:,} files takes {many['files']['mebibytes']:.0f} MiB of memory, {few['files']['count']:,} take "
        f"{few['files']['mebibytes']:.0f} MiB; from tar shards {many['shards']['mebibytes']:.0f} and {few['shards']['mebibytes']:.0f} MiB (beyond what PyTorch itself takes). A worker "
        f"reads {many['files']['images_per_second']:,.0f} and {many['shards']['images_per_second']:,.0f} images a second, JPEG of 96×96 cropped to 64×64.",
    ])


def results() -> str:
    """The document's table beside its recipe and ours, and the linear baseline."""
    run, document, linear = read("full/history"), read("runs/document/history"), read("full/03")
    lines = [
        "| epoch | L1 in training, as the source document reports | the same recipe, run here | ours, in training | ours, L1 on test images | ours, PSNR | ours, SSIM |",
        "|---|---|---|---|---|---|---|",
    ]
    for epoch, reported in DOCUMENT_L1.items():
        row, other = run["history"][epoch - 1], document["history"][epoch - 1]
        lines.append(
            f"| {epoch} | {reported:.4f} | {other['train_l1']:.4f} | {row['train_l1']:.4f} | {row['l1']:.4f} "
            f"| {row['psnr']:.2f} dB | {row['ssim']:.3f} |"
        )
    config, passed = run["config"], next(row for row in run["history"] if row["l1"] < min(DOCUMENT_L1.values()))
    lines += [
        "",
        f"CIFAR-10, pixels in [-1, 1], {run['parameters']:,} parameters; ours: {config['optimizer']}, batch "
        f"{config['batch_size']}, learning rate {config['lr']}, shortcut `{config['model'].get('shortcut', 'pool')}`, "
        f"{config['epochs']} epochs in {sum(row['seconds'] for row in run['history']) / 60:.0f} minutes of training on "
        f"{run['sessions'][0]['threads']} thread ({run['sessions'][0]['hardware']}). PSNR and SSIM are means over the test "
        f"images. Our run is below the document's last L1 after epoch {passed['epoch']}; the document's recipe, run here, ends at "
        f"{document['history'][-1]['psnr']:.2f} dB. The best linear map of each 4×4 patch "
        f"to sixteen numbers (PCA) reaches {linear['psnr_pca_16']:.2f} dB; PCA of whole images with as many numbers as "
        f"the latent, which serves one size of image only, {linear['psnr_pca_whole']:.2f} dB.",
        *seeds(run),
    ]
    return "\n".join(lines)


def seeds(run: dict) -> list[str]:
    """A sentence on how much chance is in the recorded run, if other seeds were run."""
    others = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("runs/seed-*/history.json"))]
    if not others:
        return []
    psnr, l1 = ([record["history"][-1][name] for record in (run, *others)] for name in ("psnr", "l1"))
    return [
        "",
        f"{len(psnr)} seeds: PSNR {mean(psnr):.2f} ± {stdev(psnr):.2f} dB, L1 {mean(l1):.4f} ± {stdev(l1):.4f} "
        "(mean ± standard deviation).",
    ]


def choices() -> str:
    """What each choice is worth after ten epochs, one change at a time."""
    runs = {path.parent.name: json.loads(path.read_text()) for path in RESULTS.glob("runs/ablation-*/history.json")}
    base = runs.pop("ablation-tuned")["history"]
    first, last = base[0], base[-1]
    lines = ["| test PSNR on CIFAR-10 | after one epoch of ten | | after ten | |", "|---|---|---|---|---|"]
    lines.append(f"| tuned | {first['psnr']:.2f} dB | | {last['psnr']:.2f} dB | |")
    for name, record in sorted(runs.items(), key=lambda item: -item[1]["history"][-1]["psnr"]):
        ends = [(row["psnr"], row["psnr"] - base["psnr"]) for row, base in zip((record["history"][0], record["history"][-1]), (first, last))]
        lines.append(f"| {CHOICES[name]} | " + " | ".join(f"{psnr:.2f} dB | {more:+.2f}" for psnr, more in ends) + " |")
    seeds = [base, *(read(f"runs/short-seed-{seed}/history")["history"] for seed in (1, 2))]
    early, late = (max(values) - min(values) for values in ([history[epoch]["psnr"] for history in seeds] for epoch in (0, -1)))
    at_first, in_the_end = (base[epoch]["psnr"] - runs["ablation-no-shortcut"]["history"][epoch]["psnr"] for epoch in (0, -1))
    if at_first < 2 * early or in_the_end > late:
        raise ValueError("the last sentence is about other numbers: say anew what shortcuts are worth")
    return "\n".join([*lines, "", f"{len(seeds)} seeds of the first row lie within {early:.2f} dB of each other after one epoch, within {late:.2f} dB after ten: "
                      "differences like that may be chance. In a network as shallow as this, shortcuts are worth something early, and little in the end."])


def speed() -> str:
    """Training beside the loop that a reader would write first."""
    record = read("bench/train")
    threads = f", {record['threads']} threads"
    names = {
        "reader, threads: 1": "a plain loop, 1 thread", "reader, threads: 2": "a plain loop, 2 threads",
        "reader, keeping memory": f"a plain loop, freed memory kept{threads}",
    }
    lines = ["| training, images per second | | |", "|---|---|---|"]
    lines += [f"| {names.get(row['loop'], row['loop'] + threads)} | {row['images_per_second']:,} | {row['times_reader']:.2f}× |" for row in record["rows"]]
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


def photos() -> str:
    """What a photograph loses, by how it goes through the network and by the groups of its norms."""
    rows = read("bench/photos")["rows"]
    names = {
        "full": "the course's weights, 1 group in each norm",
        "ablation-tuned": "ten epochs, 1 group",
        "ablation-groups-8": "ten epochs, 8 groups",
        "ablation-groups-32": "ten epochs, one channel per group",
    }
    lines = ["| PSNR, dB: in one piece / 32×32 tiles / overlapping tiles | " + " | ".join(
        row["photo"] for row in rows if row["model"] == "full"
    ) + " |", "|---|---|---|---|"]
    for model, name in names.items():
        found = [row["psnr"] for row in rows if row["model"] == model]
        lines.append(f"| {name} | " + " | ".join(f"{p['whole']:.1f} / {p['tiles']:.1f} / {p['32/8']:.1f}" for p in found) + " |")
    return "\n".join(lines)


def codec() -> str:
    """The codec beside others: bits at equal quality, and what is not in that number."""
    record = read("full/codec")
    ways = {
        "stripped": "without the bytes that all files of a codec share",
        "whole": "whole files, as one stores them",
        "mosaic": "500 images in one file",
    }
    names = [name for name in ("AVIF", "WebP", "JPEG", "JPEG XL", "JPEG 2000", "KLT") if name in record["bd_rate"]["stripped"]]
    lines = ["| bits for the same PSNR, ours beside | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for way, text in ways.items():
        rates = record["bd_rate"][way]
        lines.append(f"| {text} | " + " | ".join(f"{rates[name]:+.0f} %" if name in rates else "" for name in names) + " |")
    low, high = record["range"]
    points = record["curves"]["DCAE"]
    waste = max(point["bytes"] - point["ideal"] - 8 for point in points["whole"])
    middle = min(points["stripped"], key=lambda point: abs(point["psnr"] - 30))
    return "\n".join([
        *lines, "",
        f"BD-rates over {low:.0f} to {high:.0f} dB, all {record['images']:,} test images, from files that were written, read "
        f"back and decoded; negative: ours needs fewer bits. Near 30 dB one of our files has "
        f"{middle['bytes'] + middle['constant']:.0f} bytes, of which {middle['bytes']:.0f} differ from image to image ({middle['psnr']:.2f} dB, SSIM {middle['ssim']:.3f}). Header and checksum take 8 of them, and the coder at most {waste:.2f} "
        f"bytes more than its own probabilities ask for, at any quality. The KLT (a PCA of 8×8 blocks) has no file: it is a bound for "
        f"coding each coefficient of the best linear transform of 8×8 blocks on its own.",
    ])


def codec_speed() -> str:
    """How fast the codec is, and what it makes of photographs."""
    record = read("bench/codec")
    lines = ["| one thread | compress, images/s | decompress | a photo of 512×512: compress, s | decompress, s |", "|---|---|---|---|---|"]
    for name, row in record["images"].items():
        photo = record["photo_512"].get(name)
        seconds = f"{photo['compress']:.2f} | {photo['decompress']:.3f}" if photo else "| "
        lines.append(f"| {name} | {row['compress']:,.0f} | {row['decompress']:,.0f} | {seconds} |")
    names = list(record["photos"][0]["psnr"])
    lines += ["", "| PSNR of photographs in equal bytes | bytes | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for row in record["photos"]:
        if row["quality"] in (20, 60):
            lines.append(f"| {row['photo']} | {row['bytes']:,} | " + " | ".join(f"{row['psnr'][name]:.1f} dB" for name in names) + " |")
    return "\n".join([*lines, "", f"32×32 images near 30 dB, each a file of its own but where said; times are the best of several rounds; {record['hardware']}."])


def explorers() -> str:
    """How fast the explorers answer."""
    record = read("bench/explore")
    slowest = max(record["compute_ms"], key=record["compute_ms"].get)
    keys = [value for name, value in record["browser"].items() if name != "upload_seconds"]
    return (
        f"The slowest explorer (`{slowest}`) computes a new picture in {record['compute_ms'][slowest]:.0f} ms. In JupyterLab, "
        f"{min(keys):.0f} to {max(keys):.0f} ms pass between pressing a key and seeing the change, in the five explorers that have "
        f"sliders. A photo of 1,024×1,024 pixels takes "
        f"{record['browser']['upload_seconds']:.1f} s from choosing the file to seeing the result. Medians of "
        f"{record['rounds']} rounds, of fewer for the photo; one thread ({record['processor']}). A "
        f"picture takes {record['picture_ms']['png']:.1f} ms to draw; as a matplotlib figure it would take {record['picture_ms']['figure']:.0f}."
    )


def costs() -> str:
    """What the two commands and the layers of the tests cost."""
    cost = read("bench/costs")
    names = {
        "results": "`make results`",
        "unit": "unit and property tests",
        "nbval": "stored outputs (nbval)",
        "papermill": "papermill, with every solution",
        "browser": "JupyterLab and Voilà in Chromium",
    }
    lines = ["| | minutes | peak memory |", "|---|---|---|"]
    for key, name in names.items():
        lines.append(f"| {name} | {cost[key]['seconds'] / 60:.1f} | {cost[key]['peak_gib']:.1f} GiB |")
    disk = f" The environment takes {cost['environment_gib']:.1f} GiB of disk." if "environment_gib" in cost else ""
    return "\n".join([*lines, "", f"Measured on {cost['processors']} processor cores, after installation.{disk}"])


def written(text: str) -> str:
    """The README with everything between its markers written anew."""
    for section in (picture, course, scale, results, choices, speed, photos, codec, codec_speed, explorers, soap, costs):
        name, lines = section.__name__, section()
        marked = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(marked, lambda m, lines=lines: f"{m[1]}{lines}\n{m[2]}", text, flags=re.S)
    return text


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
