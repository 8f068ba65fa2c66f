"""Write photos/: three free photographs of scikit-image (pip install scikit-image), as lossless WebP."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

# name: (file in scikit-image's data folder, SHA-256 of its uint8 pixels in H,W,C order)
PHOTOS = {
    "astronaut": ("astronaut.png", "a8c429c18afa7b0fd5673e598d73a21225d94c864a71bbb3885126fdecb41071"),
    "cat": ("chelsea.png", "416b729128bfb2c3d1eb69bf9b1734a796293abc17939267b2dc94f8a5784031"),
    "coffee": ("coffee.png", "0ce2b51640b9c95f19617f03eabf40c3f0368589cc1ee1190b70966165ac184f"),
}

if __name__ == "__main__":
    import skimage

    for name, (file, sha256) in PHOTOS.items():
        image = Image.open(Path(skimage.__file__).parent / "data" / file)
        pixels = hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
        assert pixels == sha256, (
            f"{file} of scikit-image {skimage.__version__} holds other pixels than the course was made with"
        )
        image.save(Path(__file__).parent / "photos" / f"{name}.webp", lossless=True, quality=100, method=6)
