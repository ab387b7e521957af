"""Digits rendered from fonts: a pool that needs no download and no diffusion model.

It stands in for a diffusion model, so that DP-Mix_Diff runs everywhere: like such a
model, it makes labelled images of the classes without having seen the private data.
"""

import string
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dpmix_tf.errors import DPMixError

# matplotlib's symbol fonts have no usable digits.
_FONTS = (
    "DejaVuSans*.ttf",
    "DejaVuSerif*.ttf",
    "STIXGeneral*.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)

_CANVAS = 96  # side in pixels of the canvas, before shrinking


def font_files() -> list[Path]:
    """Returns the fonts that come with matplotlib and have digits, in a fixed order."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [path for pattern in _FONTS for path in sorted(folder.glob(pattern))]
    return [path for path in files if "Display" not in path.name]


def glyph(class_name: str, seed: int, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Draws a digit with random font, weight, size, slant, rotation and shift.

    Args:
      class_name: "0" to "9".
      seed: the image's seed; the same seed gives the same image.
      image_shape: (H, W, C) of the result.

    Returns:
      uint8 [H,W,C]: bright strokes on black, which fill the frame as in scanned digits.

    Raises:
      DPMixError: the class is not a digit.
    """
    if class_name not in tuple(string.digits):
        raise DPMixError(
            f"glyphs draws only the digits 0 to 9; received class {class_name!r}. Use "
            "pool.generator='stable_diffusion', or import your own public images."
        )
    height, width, channels = image_shape
    random = np.random.RandomState([seed % 2**32, seed // 2**32, int(class_name)])
    files = font_files()
    font = ImageFont.truetype(str(files[random.randint(len(files))]), _CANVAS // 2)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    ImageDraw.Draw(canvas).text(
        (_CANVAS / 2, _CANVAS / 2),
        class_name,
        fill=255,
        font=font,
        anchor="mm",
        stroke_width=int(random.randint(0, 4)),
    )
    slant = random.uniform(-0.25, 0.25)
    canvas = canvas.transform(
        canvas.size,
        Image.Transform.AFFINE,
        (1, slant, -slant * _CANVAS / 2, 0, 1, 0),
        Image.Resampling.BILINEAR,
    )
    canvas = canvas.rotate(random.uniform(-15, 15), Image.Resampling.BILINEAR)
    # Cut to the glyph, then leave it a margin, as digitised handwriting has.
    box = canvas.getbbox()
    assert box is not None  # something was drawn
    left, top, right, bottom = box
    box_height = (bottom - top) * random.uniform(1.0, 1.2)
    box_width = max(right - left, box_height * random.uniform(0.75, 1.05))
    centre_x = (left + right) / 2 + random.uniform(-0.06, 0.06) * box_width
    centre_y = (top + bottom) / 2 + random.uniform(-0.06, 0.06) * box_height
    canvas = canvas.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 3.0)))
    shrunk = canvas.resize(
        (width, height),
        Image.Resampling.BOX,
        box=(
            max(0, centre_x - box_width / 2),
            max(0, centre_y - box_height / 2),
            min(_CANVAS, centre_x + box_width / 2),
            min(_CANVAS, centre_y + box_height / 2),
        ),
    )
    pixels = np.asarray(shrunk, np.float32)
    pixels *= random.uniform(0.85, 1.0) * 255 / max(pixels.max(), 1)
    return np.repeat(pixels.astype(np.uint8)[..., np.newaxis], channels, axis=-1)
