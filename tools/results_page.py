"""Write the tables of both READMEs and the model cards from files in results/: `python tools/results_page.py`."""

import re
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev

import nbformat
from address import PLACES, home_and_ref, rewritten

from dcae_lib.course import DOCUMENT_L1, measured, recorded_runs
from dcae_lib.files import PACKAGE, resource
from dcae_lib.runs.record import fill_card

ROOT = Path(__file__).resolve().parent.parent

# notebook: (what it teaches, the notebooks that it builds on)
COURSE = {
    "00": ("load, encode, decode, measure; can you tell the copy?", ()),
    "01": ("smaller without losing a pixel; averaging and duplicating", ()),
    "02": ("the unit, the sum, shortcuts without parameters, zero-init", ("01",)),
    "03": ("assembling it; PCA as the line to beat; training in twelve lines", ("02",)),
    "04": ("the right axes to step along: Adam, Shampoo, SOAP; a fair race", ("03",)),
    "05": ("the loop written out; forty epochs; what each choice is worth; surviving a kill", ("03",)),
    "06": ("eight explorers: channels, a brush, your own picture, directions, levels, reach; tiles", ("03", "05")),
    "07": ("rounding, entropy, a coder in thirty lines, the file byte by byte", ("05", "06")),
    "08": ("training for few bits; predicting the next number; curves, and how they mislead; a byte budget", ("07",)),
    "09": (
        "larger pictures, and more of them; what to build and read next; with "
        "[streaming](notebooks/09a_streaming.ipynb), [several processes](notebooks/09b_several_processes.ipynb) and "
        "[sweeps](notebooks/09c_sweeps.ipynb) in notebooks of their own",
        ("05", "06"),
    ),
}
WORDS, LINES, EXERCISE = 150, 10, 10  # words and lines of code a minute; minutes for an exercise
WEEKS = {"first week": ("00", "01", "02"), "second": ("03", "04"), "third": ("05", "06"), "fourth": ("07", "08", "09")}
CHOICES = {
    "adamw": "AdamW instead of SOAP, its learning rate tuned",
    "direct": '`shortcut="direct"`',
    "no-shortcut": '`shortcut="none"`',
    "dropout-0.01": "dropout 0.01",
    "dropout-0.05": "dropout 0.05",
    "no-zero-init": "residual branches do not start at zero",
    "groups-8": "8 groups in each norm instead of 1",
    "groups-32": "one channel per group",
    "batch-16": "batches of 16, learning rate 0.014",
    "bfloat16": "bfloat16",
    "widths-24-24": "24 and 24 channels instead of 16 and 32",
    "widths-36-24": "36 and 24 channels",
    "widths-45-20": "45 and 20 channels",
    "widths-48-24": "48 and 24 channels, kernel 3 on the way up",
    "widths-28-28": "28 and 28 channels, kernel 3 on the way up",
    "widths-27-27": '27 and 27 channels, `shortcut="direct"`',
}
MODELS = {
    "full": "the course's weights, 1 group in each norm",
    "ablation-tuned": "ten epochs, 1 group",
    "ablation-groups-8": "ten epochs, 8 groups",
    "ablation-groups-32": "ten epochs, one channel per group",
}


def table(head: Iterable, rows: Iterable[Iterable]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(map(str, row))} |".replace("|  |", "| |") for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(list(head)), *lines[1:]])


def reading(number: str) -> tuple[str, str, int, int]:
    """Return a notebook's title and file, the minutes to read it, to five, and the number of its exercises."""
    path = next((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
    cells = nbformat.read(path, 4).cells
    text, code = ("\n".join(c.source for c in cells if c.cell_type == kind) + "\n" for kind in ("markdown", "code"))
    prose = re.sub(r"<details>.*?</details>|\[!\[[^\n]*", "", text, flags=re.S)  # nor the badge
    minutes = len(prose.split()) / WORDS + code.count("\n") / LINES
    exercises = len(re.findall(r"^\*\*\d\.", text.partition("## Check yourself")[2], re.M))
    return re.match(r"# \d\d · (.+)", text)[1], path.name, 5 * round(minutes / 5), exercises


def course() -> str:
    """Return the map of the course: what depends on what, minutes, and three paths."""
    found = {number: reading(number) for number in COURSE}
    minutes = {number: entry[2] for number, entry in found.items()}
    rows = []
    for number, (title, file, _, exercises) in found.items():
        teaches, needs = COURSE[number]
        times = f"{minutes[number]} min", f"{exercises} ({EXERCISE * exercises} min)"
        rows.append((number, f"[{title}](notebooks/{file})", teaches, ", ".join(needs) or "–", *times))

    def path(name: str, numbers: tuple[str, ...]) -> str:
        return f"{name}: {', '.join(numbers)} ({sum(minutes[n] for n in numbers)} min)"

    hours = sum(minutes.values()) / 60, EXERCISE * sum(entry[3] for entry in found.values()) / 60
    weeks = "; ".join(path(*week) for week in WEEKS.items())
    return f"""{table(("", "notebook", "teaches", "needs", "read", "exercises"), rows)}

As a course of four weeks: {weeks}. On your own: about {hours[0]:.0f} hours to read and {hours[1]:.0f} for exercises. \
04 can be skipped if the optimizer does not interest you, 07 and 08 if bits do not."""


def picture() -> str:
    """Return the caption of the moving picture."""
    record = measured("picture", "recorded")
    psnr = record["psnr"][str(record["budget"])]
    scores = ", ".join(f"{name} {value:.1f} dB" for name, value in psnr.items() if value)
    return f"""*Ten test images, and the best that each codec makes of them as the number of bytes grows. Their mean \
PSNR within {record["budget"]} bytes: {scores}. Bytes that all files of a codec share are not counted.*"""


def numbers() -> str:
    """Return five numbers, each with what it is compared with."""
    run, linear, reported = measured("history", "recorded"), measured("03", "recorded"), recorded_runs()["document"]
    last, theirs = run["history"][-1], reported["history"][-1]
    thumbnails = measured("codec", "recorded")["bd_rate"]["stripped"]
    photos = measured("photographs")["bd_rate"]["psnr"]
    quick, patient = ({name: rate["mean"] for name, rate in photos[f"DCAE {effort}"].items()} for effort in (0, 2))
    loop = {row["loop"]: row for row in measured("train")["rows"]}["ours, float32"]
    rows = [
        (
            "PSNR on CIFAR-10's test images",
            f"**{last['psnr']:.2f} dB**",
            f"PCA with as many numbers: {linear['psnr_pca_16']:.2f} dB",
        ),
        (
            "L1 in training after 40 epochs",
            f"**{last['train_l1']:.4f}**",
            f"the project's first recipe: {theirs['train_l1']:.4f}",
        ),
        (
            "bytes of a 32×32 image at equal PSNR",
            f"**{thumbnails['AVIF']:+.0f} %**",
            "AVIF, without the bytes that all files share",
        ),
        (
            "bytes of a photograph at equal PSNR",
            f"**{quick['WebP']:+.0f} %**",
            f"WebP (AVIF: {quick['AVIF']:+.0f} %, with effort {patient['AVIF']:+.0f} %)",
        ),
        ("speed of training on two cores", f"**{loop['times_reader']:.1f} ×**", "the loop that one would write first"),
    ]
    return table(("", "ours", "compared with"), rows)


def scale() -> str:
    """Return the speed of several processes compared with one, and the memory and speed of streaming."""
    record, rows = measured("distributed"), measured("stream")["rows"]
    times = [(row["batch"], row["seconds"]["alone"], row["seconds"]["together"]) for row in record["steps"]]
    steps = [(batch, f"{1e3 * a:.0f} ms", f"{1e3 * b:.0f} ms", f"{a / b:.2f}") for batch, a, b in times]
    counts = sorted({row["count"] for row in rows})
    memory = {(row["kind"], row["count"]): f"{row['mebibytes']:.0f}" for row in rows if row["workers"] == 1}
    speed = {row["kind"]: row["images_per_second"] for row in rows if row["workers"] == 1}
    files, shards = ([memory[kind, count] for count in counts] for kind in ("files", "shards"))
    drift = {name: f"{max(values.values()):.2g}" for name, values in record["drift"].items()}
    return f"""{table(("batch", "a step in one process", "in two", "times as fast"), steps)}

One thread for each process, gloo on one machine ({record["hardware"]}). After {record["after_steps"]} steps all \
processes hold the same bits. Compared with one process, which rounds its sums differently, their weights differ by up \
to {drift["float32"]} in float32, {drift["float64"]} in float64, and {drift["float64, eps 1e-6"]} in float64 with an \
eps of 1e-6.

Streaming {counts[-1]:,} files takes {files[-1]} MiB of memory, {counts[0]:,} take {files[0]} MiB; from tar shards \
{shards[-1]} and {shards[0]} MiB (beyond what PyTorch itself takes). A worker reads {speed["files"]:,.0f} and \
{speed["shards"]:,.0f} images a second, JPEG of 96×96 cropped to 64×64."""


def results() -> str:
    """Return the table of the recorded run, next to what was reported for such a network, and the linear baseline."""
    run, linear = measured("history", "recorded"), measured("03", "recorded")
    document = recorded_runs()["document"]
    head = ("epoch", "L1 in training, as reported", "the same recipe, run here", "ours, in training")
    rows = []
    for epoch, reported in DOCUMENT_L1.items():
        ours, theirs = run["history"][epoch - 1], document["history"][epoch - 1]
        losses = (reported, theirs["train_l1"], ours["train_l1"], ours["l1"])
        rows.append((epoch, *(f"{l1:.4f}" for l1 in losses), f"{ours['psnr']:.2f} dB", f"{ours['ssim']:.3f}"))
    config, session = run["config"], run["sessions"][0]
    widths = " and ".join(map(str, config["model"]["channels"]))
    minutes = sum(row["seconds"] for row in run["history"]) / 60
    passed = next(row["epoch"] for row in run["history"] if row["l1"] < min(DOCUMENT_L1.values()))
    seeds = [run, *(other for name, other in recorded_runs().items() if name.startswith("seed-"))]
    psnr, l1 = ([seed["history"][-1][name] for seed in seeds] for name in ("psnr", "l1"))
    return f"""{table((*head, "ours, L1 on test images", "ours, PSNR", "ours, SSIM"), rows)}

CIFAR-10, pixels in [-1, 1]; ours: {widths} channels, {run["parameters"]:,} parameters, {config["optimizer"]}, batch \
{config["batch_size"]}, learning rate {config["lr"]}, shortcut `{config["model"].get("shortcut", "pool")}`, \
{config["epochs"]} epochs in {minutes:.0f} minutes of training on {session["threads"]} thread ({session["hardware"]}). \
PSNR and SSIM are means over the test images. After epoch {passed} our run is below the last L1 that was reported; the \
same recipe, run here, ends at {document["history"][-1]["psnr"]:.2f} dB. The best linear map of each 4×4 patch to \
sixteen numbers (PCA) reaches {linear["psnr_pca_16"]:.2f} dB; PCA of whole images with as many numbers as the latent, \
which serves one size of image only, {linear["psnr_pca_whole"]:.2f} dB.

{len(seeds)} seeds: PSNR {mean(psnr):.2f} ± {stdev(psnr):.2f} dB, L1 {mean(l1):.4f} ± {stdev(l1):.4f} \
(mean ± standard deviation)."""


def choices() -> str:
    """Return what each choice is worth after one epoch of ten and after all, one change at a time."""
    ends = {name: [run["history"][k]["psnr"] for k in (0, -1)] for name, run in recorded_runs().items()}
    base = ends["ablation-tuned"]
    rows = [("the tuned recipe with 16 and 32 channels", f"{base[0]:.2f} dB", "", f"{base[1]:.2f} dB", "")]
    for name, psnr in sorted(ends.items(), key=lambda item: -item[1][1]):
        if choice := CHOICES.get(name.removeprefix("ablation-")):
            rows.append((choice, *(f"{a:.2f} dB | {a - b:+.2f}" for a, b in zip(psnr, base))))
    seeds = [base, ends["short-seed-1"], ends["short-seed-2"]]
    early, late = (max(values) - min(values) for values in zip(*seeds))
    first, last = (a - b for a, b in zip(base, ends["ablation-no-shortcut"]))
    if first < 2 * early or last > late:
        raise ValueError("the last sentence is about other numbers: say anew what shortcuts are worth")
    return f"""{table(("test PSNR on CIFAR-10", "after one epoch of ten", "", "after ten", ""), rows)}

{len(seeds)} seeds of the first row lie within {early:.2f} dB of each other after one epoch, within {late:.2f} dB \
after ten: differences like that may be chance. In a network as shallow as this, shortcuts are worth something early, \
and little in the end."""


def speed() -> str:
    """Return in words how fast training is, on a processor and on a GPU."""
    times = {row["loop"]: row for row in measured("train")["rows"]}["ours, float32"]
    record = measured("gpu")
    whole, plain = record["40 epochs, float32"], record["the plain loop"]["images_per_second"]
    gpu = record["float32"]["images_per_second"] / plain
    return f"""On two cores, training is {times["times_reader"]:.1f} times as fast as the loop that one would write \
first, and an epoch with its evaluation {times["epoch_times_reader"]:.1f} times. On a GPU it runs as CUDA graphs, \
{gpu:.0f} times as fast as that loop: {whole["epochs"]} epochs of CIFAR-10 with their evaluation took \
{whole["seconds"]:.0f} s on one {record["hardware"].split(",")[0]}. The network timed is `DCAE()`, which the notebooks \
build."""


LOOPS = {
    "reader, threads: 1": "plain loop, 1 thread",
    "reader, threads: 2": "plain loop, 2 threads",
    "reader, keeping memory": "plain loop, freed memory kept",
    "ours, float32": "`train`",
    "ours, float32, channels first": "`train` without channels last",
    "ours, float32, memory given back": "`train` without keeping freed memory",
    "ours, bfloat16": "`train` in bfloat16",
}


def training() -> str:
    """Return the speed of training and evaluation compared with the plain loop."""
    record = measured("train")
    head = ("", "images/s", "× plain", "evaluated/s", "an epoch with its evaluation, s", "× plain")
    rows = []
    for row in record["rows"]:
        counts = f"{row['images_per_second']:,}", f"{row['times_reader']:.2f}", f"{row['evaluated_per_second']:,}"
        rows.append((LOOPS[row["loop"]], *counts, f"{row['epoch_seconds']:.0f}", f"{row['epoch_times_reader']:.2f}"))
    return f"""{table(head, rows)}

Medians of {record["rounds"]} rounds, batch {record["batch"]}; {record["threads"]} threads unless the row says \
otherwise, {record["hardware"]}. *Channels last*: the channels of a pixel lie side by side in memory, as convolutions \
read them. *Freed memory kept*: the C library does not give it back to the system after every step."""


def step() -> str:
    """Return where a step's time goes, and its floor."""
    record = measured("step")
    names = ("convolutions", "norms", "activations", "shortcuts", "SOAP", "rest", "step", "one_image", "floor")
    words = dict(step="**whole step**", one_image="*with one image in the batch*", floor="**floor**")
    rows = [(words.get(name, name), *(f"{row[name]:.1f}" for row in record["rows"])) for name in names]
    precisions = [row["precision"] for row in record["rows"]]
    bounds = "; ".join(
        f"{row['precision']}: {row['fastest_gflop_per_s']:.0f} GFLOP/s, {row['activations_MB']:.0f} MB of activations "
        f"at {row['copy_GB_per_s']:.0f} GB/s, the step is at {row['share']:.0%} of its floor's speed"
        for row in record["rows"]
    )
    return f"""{table(("ms, batch 32", *precisions), rows)}

The floor is what this core could do: the {record["rows"][0]["gflop"]:.2f} GFLOP of the convolutions at the rate of \
the fastest of them, and every activation written and read once on the way forward and once on the way back, as fast \
as memory is copied ({bounds}). CPU time, medians of {record["rounds"]} rounds, one thread; {record["hardware"]}."""


def card() -> str:
    """Return what was measured on a GPU."""
    record = measured("gpu")
    plain, nccl = record["the plain loop"]["images_per_second"], record["one process with NCCL"]["images_per_second"]
    names = dict.fromkeys(("kernel by kernel", "float32", "TF32 in convolutions", "TF32", "bfloat16"), 32)
    names |= {"float32, compiled": 32, "float32, batch 64": 64, "float32, batch 128": 128}
    rows = [("plain loop, kernel by kernel", 32, f"{plain:,}", "", "1.0")]
    for name, batch in names.items():
        row = record[name]
        speeds = (
            f"{row['images_per_second']:,}",
            f"{row['milliseconds']:.2f}",
            f"{row['images_per_second'] / plain:.1f}",
        )
        rows.append((name.split(", batch")[0] if name == "kernel by kernel" else f"graphs, {name}", batch, *speeds))
    runs = {name: record[f"40 epochs, {name}"] for name in ("float32", "float32, batch 64")}
    whole = [
        (f"graphs, {name}", f"{run['seconds']:.0f} s", f"{run['training']:.0f} s", f"{run['psnr']:.2f} dB")
        for name, run in runs.items()
    ]
    optimizers = ", ".join(f"{name} {ms:.1f} ms" for name, ms in record["optimizers"].items())
    parts = [(name, part) for name, part in record["parts"].items() if isinstance(part, dict)]
    kernels = ", ".join(f"{name} {part['milliseconds']:.2f} ms in {part['kernels']} kernels" for name, part in parts)
    evaluated = ", ".join(f"{seconds:.2f} s {count}" for count, seconds in record["evaluation"].items())
    return f"""{table(("", "batch", "images/s", "ms a step", "× plain"), rows)}

{table(("40 epochs of CIFAR-10, evaluated after each", "all", "training", "test PSNR"), whole)}

{record["hardware"]}, torch {record["versions"]["torch"]}, commit {record["revision"]}. TF32 and bfloat16 gain \
nothing here: a step moves \
{record["parts"]["share_of_bandwidth"]:.0%} of what the memory could in its time; what counts is how many kernels \
there are. In a graph: {kernels}. Kernel by kernel, a step of each optimizer: {optimizers}. Evaluating 10,000 images \
takes {evaluated}. Under DDP with NCCL, one process, kernel by kernel: {nccl:,} images/s. With batches of 64 the \
learning rate is 0.028, the betas 0.9 and 0.95, and bases are refreshed every 5 steps."""


def soap() -> str:
    """Return the time of a step of SOAP in steps of AdamW."""
    record = measured("soap")
    names = {
        "torch AdamW, fused": "AdamW, fused",
        "ours": "`dcae_lib.SOAP`",
        "pytorch_optimizer": "pytorch_optimizer",
        "heavyball": "heavyball, compiled",
    }
    times = {(row["model"], row["frequency"], row["implementation"]): row["times_adamw"] for row in record["rows"]}
    kinds = dict.fromkeys(key[:2] for key in times)
    head = [f"{model}, basis refreshed every {'step' if k == 1 else f'{k} steps'}" for model, k in kinds]
    rows = [(name, *(f"{times[*kind, key]:.1f}" for kind in kinds)) for key, name in names.items()]
    return f"""{table(("one step, in steps of `torch.optim.AdamW`", *head), rows)}

CPU time on one thread ({record["processor"]}), all of them in turns in one process."""


def photos() -> str:
    """Return the PSNR of photographs, by the way in which they go through the network and the groups of its norms."""
    rows = measured("photos")["rows"]
    names = dict.fromkeys(row["photo"] for row in rows)
    cells = {name: [name] for name in MODELS.values()}
    for row in rows:
        cells[MODELS[row["model"]]].append(" / ".join(f"{row['psnr'][way]:.1f}" for way in ("whole", "tiles", "32/8")))
    return table(("PSNR, dB: in one piece / 32×32 tiles / overlapping tiles", *names), cells.values())


def codec() -> str:
    """Return the bits of the codec compared with others at equal quality, and what is not in that number."""
    record = measured("codec", "recorded")
    names = ("AVIF", "WebP", "JPEG", "JPEG XL", "JPEG 2000", "KLT")
    ways = {"stripped": "without the bytes that all files of a codec share", "whole": "whole files, as one stores them"}
    rates = [(text, record["bd_rate"][way]) for way, text in (ways | {"mosaic": "500 images in one file"}).items()]
    rows = [(text, *(f"{rate[name]:+.0f} %" if name in rate else "" for name in names)) for text, rate in rates]
    points, (low, high) = record["curves"]["DCAE"], record["range"]
    waste = max(point["bytes"] - point["ideal"] - 8 for point in points["whole"])
    middle = min(points["stripped"], key=lambda point: abs(point["psnr"] - 30))
    return f"""{table(("bits for the same PSNR, ours compared with", *names), rows)}

BD-rates over {low:.0f} to {high:.0f} dB, all {record["images"]:,} test images, from files that were written, read \
back and decoded; negative: ours needs fewer bits. Near 30 dB one of our files has \
{middle["bytes"] + middle["constant"]:.0f} bytes, of which {middle["bytes"]:.0f} differ from image to image \
({middle["psnr"]:.2f} dB, SSIM {middle["ssim"]:.3f}). Header and checksum take 8 of them, and the coder on average \
at most {waste:.2f} bytes more than its own probabilities ask for, at any quality. The KLT (a PCA of 8×8 blocks) has \
no file: it is a bound for coding each coefficient of the best linear transform of 8×8 blocks on its own."""


def photographs() -> str:
    """Return the bits of the codec on photographs, compared with others at equal quality, by effort."""
    record = measured("photographs")
    names, low, high = ("AVIF", "WebP", "JPEG"), *record["range"]
    rows = [
        (f"effort {ours[-1]}, equal {words}", *(f"{rates[name]['mean']:+.0f} %" for name in names))
        for metric, words in (("psnr", "PSNR"), ("ms_ssim", "MS-SSIM"))
        for ours, rates in record["bd_rate"][metric].items()
    ]
    sizes = {row["side"]: row for row in record["sizes"]}
    small, large = sizes[min(sizes)], sizes[max(sizes)]
    return f"""{table(("bits for a photograph, ours compared with", *names), rows)}

BD-rates over {low:.0f} to {high:.0f} dB, means of {len(record["curves"])} photographs that no training saw, whole \
files; AVIF in 4:4:4 at speed 4, WebP at method 6. A photograph in squares of {small["side"]} pixels, each with a \
file of its own by the same network, takes {small["bpp"] / large["bpp"]:.1f} times the bytes of one in a single file, \
with {small["psnr"]:.1f} and {large["psnr"]:.1f} dB."""


def codec_speed() -> str:
    """Return the speed of the codec."""
    record = measured("codec")
    rows, large = [], record["photo_12_mp"]
    for name, row in record["images"].items():
        photo = record["photo_512"].get(name)
        seconds = (f"{photo['compress']:.2f}", f"{photo['decompress']:.3f}") if photo else ("", "")
        rows.append((name, f"{row['compress']:,.0f}", f"{row['decompress']:,.0f}", *seconds))
    head = ("one thread", "compress, images/s", "decompress", "a photo of 512×512: compress, s", "decompress, s")
    return f"""{table(head, rows)}

32×32 images near 30 dB, each a file of its own unless the row says otherwise; times are the best of several rounds; \
{record["hardware"]}. A photo of 512×512 takes {record["effort"]["1"]:.0f} s at effort 1 and \
{record["effort"]["2"]:.0f} s at effort 2. One of 4000×3000 is compressed in {large["compress"]:.0f} s and \
decompressed in {large["decompress"]:.0f} s, within {large["gib"]:.1f} GiB of memory for the whole process."""


def explorers() -> str:
    """Return how fast the explorers answer."""
    record = measured("explore")
    slowest = max(record["compute_ms"], key=record["compute_ms"].get)
    keys = [value for name, value in record["browser"].items() if name != "upload_seconds"]
    png, figure = (record["picture_ms"][name] for name in ("png", "figure"))
    waits, lost = record["page"]["waits_ms"].values(), max(record["page"]["lost_frames"].values())
    return f"""The slowest explorer (`{slowest}`) computes a new picture in {record["compute_ms"][slowest]:.0f} ms. \
In JupyterLab, {min(keys):.0f} to {max(keys):.0f} ms pass between pressing a key and seeing the change, in the five \
explorers that have sliders. A photo of 1,024×1,024 pixels takes {record["browser"]["upload_seconds"]:.1f} s from \
choosing the file to seeing the result. On the web pages, where the network runs in the browser, it is \
{min(waits):.0f} to {max(waits):.0f} ms from moving a slider to the end of the frame that shows it; a drag loses \
{lost:.0%} of its frames. Medians of {record["rounds"]} rounds, of fewer for the photo and the pages; one \
thread ({record["processor"]}). A picture takes {png:.1f} ms to draw; as a matplotlib figure it would take \
{figure:.0f}."""


SECTIONS = (
    picture,
    course,
    numbers,
    scale,
    results,
    choices,
    speed,
    photos,
    codec,
    photographs,
    codec_speed,
    explorers,
)
SECTIONS += (training, step, card, soap)
PAGES = ("README.md", "results/README.md")


def written(page: str) -> str:
    """Return a page with everything between its markers written anew."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for section in SECTIONS:
        name, lines = section.__name__, section()
        marked = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text = re.sub(marked, lambda m, lines=lines: f"{m[1]}{lines}\n{m[2]}", text, flags=re.S)
    return rewritten(page, text, *(home_and_ref() or (None,))) if page in PLACES else text


def cards() -> dict[Path, bytes]:
    """Return the model cards of the recorded runs, by file."""
    templates = {"recorded": PACKAGE / "runs" / "card.md"}
    templates |= dict.fromkeys(("photographs", "thumbnails"), PACKAGE / "codec" / "card.md")
    return {resource(run) / "README.md": fill_card(card, measured("history", run)) for run, card in templates.items()}


if __name__ == "__main__":
    for path, card in cards().items():
        path.write_bytes(card)
    for page in PAGES:
        (ROOT / page).write_text(written(page), encoding="utf-8")
