"""Choose the embedded sample from CIFAR-10 and write it to data/sample: `python data/make_sample.py`."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dcae_lib.data import CLASSES, load_images

SEED = 0
COLUMNS = 10
PER_CLASS = {"train": 200, "test": 50}


def main(folder: Path = Path(__file__).parent / "sample") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator, record = np.random.default_rng(SEED), {"seed": SEED}
    for split, cifar10 in load_images("cifar10")._asdict().items():
        images, labels, n = cifar10.images.permute(0, 2, 3, 1).numpy(), cifar10.labels.numpy(), PER_CLASS[split]
        chosen = [np.sort(generator.choice(np.flatnonzero(labels == c), n, replace=False)) for c in range(10)]
        for name, index in zip(CLASSES, chosen):
            sheet = images[index].reshape(-1, COLUMNS, 32, 32, 3).swapaxes(1, 2).reshape(-1, COLUMNS * 32, 3)
            Image.fromarray(sheet).save(folder / f"{split}-{name}.png", optimize=True)
        in_turn = np.stack(chosen, 1).ravel()  # image i of the sample is of class i % 10
        sha256 = hashlib.sha256(images[in_turn].tobytes()).hexdigest()
        record[split] = {"sha256": sha256, "cifar10_index": in_turn.tolist()}
    (folder / "sample.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
