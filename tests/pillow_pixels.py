#!/usr/bin/env python3
"""What Pillow makes of pictures: pillow_pixels.py PICTURE... prints nothing and writes PICTURE.rgb beside each, 8-bit RGB
behind a line of its width and height. tests/image.rs runs it where Pillow is there."""
import sys

from PIL import Image

for path in sys.argv[1:]:
    picture = Image.open(path).convert("RGB")
    with open(path + ".rgb", "wb") as out:
        out.write(f"{picture.width} {picture.height}\n".encode())
        out.write(picture.tobytes())
