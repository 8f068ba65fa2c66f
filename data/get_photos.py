"""Fetch free photographs from Debian's archive into photographs/: train/ to train the codec on, test/ to measure it.

`python data/get_photos.py [FOLDER]` works on Debian and Ubuntu: it calls `apt-get download` and `dpkg-deb`, installs
nothing and needs no rights. data/README.md names authors and licences. No author has pictures in both folders.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

# package: (folder in it, {author: files}); of authors in TESTS, pictures are only tested on
PACKAGES = {
    "lomiri-wallpapers-16.04": (
        "usr/share/backgrounds",
        {
            "Sander Klootwijk": ("Bridge_by_Sander_Klootwijk.jpg",),
            "Bolly": ("Dragonfly_by_Bolly.jpg",),
            "Trevor Freespace": ("Picture_0B_by_freespace.jpg", "Picture_1A_by_freespace.jpg"),
            "Jakub Mede": ("Wine_by_Jakkub_Mede.jpg",),
            "Aitzol Berasategi": tuple(
                f"{name}_by_Aitzol_Berasategi.jpg"
                for name in ("aitzgorri", "friends", "life", "picosdeeuropa", "sunset")
            ),
            "Peter Nerlich": ("free_by_Peter_Nerlich.jpg", "greentock_by_Peter_Nerlich.jpg"),
            "Clemens Engelhardt": ("seeding_by_Clements_Engelhardt.jpg",),
        },
    ),
    "lomiri-wallpapers-20.04": ("usr/share/backgrounds", {"Lukas Baubkus": ("Kleiber_by_Lukas_Baubkus.jpg",)}),
    "mate-backgrounds": (
        "usr/share/backgrounds/mate/nature",
        {
            "Charles Barbin": ("Aqua.jpg", "Garden.jpg", "LadyBird.jpg", "TwoWings.jpg", "YellowFlower.jpg"),
            "Lennart Poettering, Andrea Cimitan": ("Blinds.jpg",),
            "Marco Cogoni": ("Dune.jpg",),
            "Jens Ansorg": ("FreshFlower.jpg",),
            "Timothy Schellhase": ("GreenMeadow.jpg",),
            "blackcombwhistler07": ("RainDrops.jpg",),
            "Sergey Nazarov": ("Storm.jpg",),
            "Jean-François Fortin Tam": ("Wood.jpg",),
        },
    ),
    "plasma-workspace-wallpapers": (
        "usr/share/wallpapers",
        {
            author: tuple(f"{name}/contents/images/2560x1600.jpg" for name in names)
            for author, names in {
                "Maciej Wiklo": ("BytheWater",),
                "Risto Saukonpää": ("ColdRipple", "DarkestHour", "Kite", "OneStandsOut", "Path", "summer_1am"),
                "Dmitri Popov": ("ColorfulCups",),
                "Ian Hex": ("EveningGlow",),
                "Martin Klapetek": ("FallenLeaf",),
                "Sigi Sagi": ("Grey",),
            }.items()
        },
    ),
}
TESTS = ("Ian Hex", "Lukas Baubkus", "Maciej Wiklo", "Marco Cogoni", "Trevor Freespace")
SIDE = 1024  # pixels of a test photograph's longer side: scaled down, no trace of the JPEG it was is left


def main(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as unpacked:
        for package, (inside, authors) in PACKAGES.items():
            subprocess.run(["apt-get", "download", package], cwd=unpacked, check=True)  # noqa: S607
            (archive,) = Path(unpacked).glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)  # noqa: S607
            for author, files in authors.items():
                for file in files:
                    name = file.split("/")[0].split("_by_")[0].removesuffix(".jpg")
                    save(Path(unpacked, inside, file), folder, name, test=author in TESTS)
            archive.unlink()


def save(source: Path, folder: Path, name: str, test: bool) -> None:
    """Copy a photograph to train/, or write it to test/, scaled down."""
    if not test:
        (folder / "train" / f"{name}.jpg").write_bytes(source.read_bytes())
        return
    image = Image.open(source).convert("RGB")
    scale = SIDE / max(image.size)
    width, height = (round(length * scale) for length in image.size)
    image.resize((width, height), Image.Resampling.LANCZOS).save(folder / "test" / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "photographs")
