"""Dead leaves: images of nothing, with the statistics of photographs.

Opaque shapes of random size fall on one another until they cover the frame. Such images
share with photographs what is known of all of them: edges, occlusion, scale invariance
and little chroma. Constants that are measured on them need no data.
"""

import math
from typing import NamedTuple

import numpy as np

from dpmix_tf.errors import DPMixError

# Part of every image's seed: raise it whenever the images change.
VERSION = 1

_FINER = 2  # subpixels per pixel and axis
_DEPTH = 4.0  # leaves over a point, on average
_PIXELS = 2**16  # pixels of the images that are rendered at once
_EVALUATIONS = 2**18  # subpixels that are compared with leaves at once
_ELLIPSE, _RECTANGLE, _TRIANGLE = range(3)
# Mean area of a leaf of radius 1, for aspect ratios uniform in [1/3, 1].
_MEAN_AREA = (math.pi * 2 / 3 + 6 * 0.75 * (math.log(2) - math.log(10 / 9))) / 3

# Cone responses to linear RGB (Reinhard et al. 2001, "Color transfer between images"),
# scaled so that all cones respond to white by 1; and the axes l, alpha and
# beta of log responses (Ruderman et al. 1998).
_CONES = np.array(
    [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]]
)
_RGB_OF_CONES = np.linalg.inv(_CONES / _CONES.sum(axis=1, keepdims=True))
_AXES = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])
_AXES /= np.linalg.norm(_AXES, axis=1, keepdims=True)


def dead_leaves(
    count: int, image_shape: tuple[int, int, int], *, seed: int = 0
) -> np.ndarray:
    """Renders images of dead leaves: occluding shapes of all sizes, without any data.

    Sizes, contrast and chroma follow published statistics of natural images, and are
    drawn for each image from wide ranges around them. Where no statistic is cited
    (tint, shading, aspect ratios, noise), the ranges are plain choices. No parameter
    was fitted to a data set. "Within a factor of three" means log-uniform from a third
    of the value to three times it.

    - Sizes: leaves fall uniformly; the density of their radii is proportional to r^-3,
      the only exponent that is invariant to scale (Lee, Mumford and Huang 2001,
      "Occlusion models for natural images"). It is cut at a smallest radius,
      log-uniform from 1/2 to 2 pixels, and at the image's longer side.
    - Shapes: ellipses, rectangles and triangles, turned at random, with aspect ratios
      from 1/3 to 1 (Baradad et al. 2021, "Learning to see by looking at noise", learn
      from images of such shapes).
    - Lightness: log-normal (Ruderman 1994, "The statistics of natural images"). Its
      standard deviation, in natural logarithms, is within a factor of three of 0.31;
      Ruderman, Cronin and Chiao (1998, "Statistics of cone responses to natural
      images") find 0.35 along l = (L+M+S)/sqrt(3) of log responses, which is 0.2 per
      cone in natural and 0.47 in decimal logarithms. The median is within a factor of
      three of the photographer's mid-grey, 0.18.
    - Chroma: along alpha, yellow to blue, within a factor of three of 1/5 of lightness;
      along beta, red to green, within a factor of three of 1/50 (their standard
      deviations: about 0.35, 0.07 and 0.007). The light tints the whole image by as
      much again.
    - Shading: a slope of log lightness across each leaf and across the image, of
      standard deviation from 0 to that of lightness.
    - Camera: pixels average 2 x 2 points and their neighbours, by [b, 1-2b, b] with b
      from 0 to 1/8; values are raised to 1/2.2; noise of standard deviation 0.003 to
      0.03, log-uniform. Blur and smallest radius are such that power falls with
      frequency about as f^-2 to f^-2.5, as in natural images (Field 1987; Tolhurst,
      Tadmor and Chao 1992).

    Args:
      count: n, the number of images.
      image_shape: (H, W, C). One channel is grey and three are RGB; with other numbers
        of channels, every leaf has an independent lightness in each channel.
      seed: 0 or more; the same seed gives the same images on every machine, and the
        first images of a longer series are those of a shorter one.

    Returns:
      uint8 [n,H,W,C].

    Raises:
      DPMixError: the count or the seed is negative, or a side is below 1.
    """
    if count < 0 or seed < 0 or min(image_shape) < 1:
        raise DPMixError(
            "dead_leaves needs a count and a seed of 0 or more and positive sides; "
            f"received: count={count}, seed={seed}, image_shape={image_shape}."
        )
    height, width, channels = image_shape
    images = np.empty((count, *image_shape), np.uint8)
    step = max(1, _PIXELS // (height * width))
    for start in range(0, count, step):
        scenes = [
            _draw_scene(seed, index, image_shape)
            for index in range(start, min(start + step, count))
        ]
        images[start : start + step] = _photograph(
            _paint(scenes, height, width), scenes
        )
    return images


class _Leaves(NamedTuple):
    """m leaves, each below those before it in the same image.

    Attributes:
      centres: float64 [m,2], rows and columns in pixels.
      radii: float64 [m], of the circles around the leaves, in pixels.
      aspects: float64 [m].
      angles: float64 [m].
      kinds: int64 [m], _ELLIPSE, _RECTANGLE or _TRIANGLE.
      colours: float64 [m,C], linear.
      slopes: float64 [m,2], of log lightness per pixel.
    """

    centres: np.ndarray
    radii: np.ndarray
    aspects: np.ndarray
    angles: np.ndarray
    kinds: np.ndarray
    colours: np.ndarray
    slopes: np.ndarray


class _Scene(NamedTuple):
    """What one image shows.

    Attributes:
      leaves: the last one covers the whole image.
      light: float64 [2], the slope of log lightness per pixel, for the whole image.
      blur: b, the weight of a pixel's neighbours.
      noise: float64 [H,W,C].
    """

    leaves: _Leaves
    light: np.ndarray
    blur: float
    noise: np.ndarray


def _draw_scene(seed: int, index: int, image_shape: tuple[int, int, int]) -> _Scene:
    # NumPy guarantees RandomState's streams never change, unlike Generator's.
    words = [seed % 2**32, seed // 2**32, index, VERSION]
    random = np.random.RandomState(words)
    height, width, channels = image_shape
    side = max(height, width)
    smallest = 0.5 * 4.0 ** random.random_sample()
    contrast, alpha, beta, median = (
        middle * 3.0 ** random.uniform(-1, 1) for middle in (0.31, 0.2, 0.02, 0.18)
    )
    shading = contrast * random.random_sample()
    blur = random.uniform(0, 0.125)
    noise = 0.003 * 10.0 ** random.random_sample()

    radii = _draw_radii(random, (height, width), smallest, max(side, 8))
    # Leaves that cannot touch the frame are not drawn. The last one covers it.
    places = random.random_sample((len(radii), 2))
    centres = places * (np.array([height, width]) + 2 * radii[:, np.newaxis])
    centres -= radii[:, np.newaxis]
    radii = np.append(radii, 4.0 * side)
    centres = np.append(centres, [[height / 2, width / 2]], axis=0)
    count = len(radii)
    kinds = random.randint(3, size=count)
    kinds[-1] = _ELLIPSE
    aspects = random.uniform(1 / 3, 1, size=count)
    aspects[-1] = 1.0
    tones = contrast * random.standard_normal((count, 1 if channels == 3 else channels))
    chroma = np.array([alpha, beta]) * contrast * math.sqrt(3)
    tints = chroma * (random.standard_normal((count, 2)) + random.standard_normal(2))
    if channels == 3:
        logs = np.concatenate([math.sqrt(3) * tones, tints], axis=1)
        # Sums by hand: their rounding does not depend on a library.
        cones = np.exp(sum(logs[:, [i]] * _AXES[i] for i in range(3)))
        colours = sum(cones[:, [i]] * _RGB_OF_CONES[:, i] for i in range(3))
    else:
        colours = np.exp(tones)
    leaves = _Leaves(
        centres=centres,
        radii=radii,
        aspects=aspects,
        angles=random.uniform(0, 2 * math.pi, size=count),
        kinds=kinds,
        colours=median * np.maximum(colours, 0.0),
        slopes=shading * random.standard_normal((count, 2)) / radii[:, np.newaxis],
    )
    return _Scene(
        leaves=leaves,
        light=shading * random.standard_normal(2) / (side / 2),
        blur=blur,
        noise=noise * random.standard_normal(image_shape),
    )


def _draw_radii(
    random: np.random.RandomState,
    sides: tuple[int, int],
    smallest: float,
    largest: float,
) -> np.ndarray:
    """Radii of all leaves whose circle may touch the frame: float64 [m].

    Of radius r, leaves fall with density c r^-3 per unit area, in the frame and within
    r of it: in proportion to r^-3 (H+2r)(W+2r), a mixture of three power laws.
    """
    height, width = sides
    masses = np.array(
        [
            height * width * (smallest**-2 - largest**-2) / 2,
            2 * (height + width) * (1 / smallest - 1 / largest),
            4 * math.log(largest / smallest),
        ]
    )
    density = _DEPTH / (_MEAN_AREA * math.log(largest / smallest))
    count = max(1, round(density * masses.sum()))
    chosen, u = random.random_sample((2, count))
    law = np.searchsorted(np.cumsum(masses)[:2] / masses.sum(), chosen)
    cubic = 1 / np.sqrt(smallest**-2 + u * (largest**-2 - smallest**-2))
    square = 1 / (1 / smallest + u * (1 / largest - 1 / smallest))
    inverse = smallest * (largest / smallest) ** u
    return np.choose(law, [cubic, square, inverse])


def _paint(scenes: list[_Scene], height: int, width: int) -> np.ndarray:
    """Looks up the colour of the topmost leaf: float64 [n,2H,2W,C], linear."""
    counts = [len(scene.leaves.radii) for scene in scenes]
    parts = zip(*(scene.leaves for scene in scenes), strict=True)
    leaves = _Leaves(*(np.concatenate(part) for part in parts))
    rows, columns = height * _FINER, width * _FINER
    top = _topmost(leaves, counts, (rows, columns))
    y = ((np.arange(rows) + 0.5) / _FINER)[:, np.newaxis]
    x = (np.arange(columns) + 0.5) / _FINER
    light = np.array([scene.light for scene in scenes])[..., np.newaxis, np.newaxis]
    logs = leaves.slopes[:, 0][top] * (y - leaves.centres[:, 0][top])
    logs += leaves.slopes[:, 1][top] * (x - leaves.centres[:, 1][top])
    logs += light[:, 0] * (y - height / 2) + light[:, 1] * (x - width / 2)
    return leaves.colours[top] * np.exp(logs)[..., np.newaxis]


def _topmost(leaves: _Leaves, counts: list[int], shape: tuple[int, int]) -> np.ndarray:
    """Index of the leaf that is seen at every subpixel.

    Args:
      leaves: those of all n images, one image after another.
      counts: how many each image has.
      shape: (rows, columns) of the finer grid.

    Returns:
      int64 [n,rows,columns].
    """
    rows, columns = shape
    centres, radii = leaves.centres * _FINER - 0.5, leaves.radii * _FINER
    owner = np.repeat(np.arange(len(counts)), counts)
    last = np.cumsum(counts) - 1
    top = np.repeat(last, rows * columns)
    boxes = np.array([4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192])
    boxes = np.append(boxes[boxes < max(shape)], max(shape))
    needed = np.minimum(2 * np.ceil(radii).astype(np.int64) + 1, boxes[-1])
    sizes = boxes[np.searchsorted(boxes, needed)]
    sizes[last] = 0  # they are there already
    for box in boxes:
        sides = min(box, rows), min(box, columns)
        grid = np.arange(sides[0])[:, np.newaxis] * columns + np.arange(sides[1])
        step = max(1, _EVALUATIONS // grid.size)
        for kind in (_ELLIPSE, _RECTANGLE, _TRIANGLE):
            members = np.flatnonzero((sizes == box) & (leaves.kinds == kind))
            for start in range(0, len(members), step):
                some = members[start : start + step]
                corner = np.ceil(centres[some] - radii[some, np.newaxis])
                corner = np.clip(corner, 0, [rows - sides[0], columns - sides[1]])
                inside = _inside(
                    kind,
                    corner - centres[some],
                    radii[some],
                    leaves.angles[some],
                    leaves.aspects[some],
                    sides,
                )
                corner = corner.astype(np.int64)
                first = (owner[some] * rows + corner[:, 0]) * columns + corner[:, 1]
                points = (first[:, np.newaxis, np.newaxis] + grid)[inside]
                shown = np.repeat(some, np.count_nonzero(inside, axis=(1, 2)))
                np.minimum.at(top, points, shown)
    return top.reshape(len(counts), rows, columns)


def _inside(
    kind: int,
    corners: np.ndarray,
    radii: np.ndarray,
    angles: np.ndarray,
    aspects: np.ndarray,
    box: tuple[int, int],
) -> np.ndarray:
    """Which points of a box each leaf covers: bool [m,*box].

    All kinds fit into the leaf's circle. Corners are relative to the leaves' centres.
    """
    # Half the length; rectangles and triangles touch the circle with their corners.
    half = radii if kind == _ELLIPSE else radii / np.sqrt(1 + aspects**2)
    cosine, sine = (
        (turn(angles) / half)[:, np.newaxis, np.newaxis] for turn in (np.cos, np.sin)
    )
    thin = aspects[:, np.newaxis, np.newaxis]
    y = (corners[:, :1] + np.arange(box[0]))[:, :, np.newaxis]
    x = (corners[:, 1:] + np.arange(box[1]))[:, np.newaxis]
    # float32 halves the time; each sum and product is rounded alike on every machine.
    u = (x * cosine).astype(np.float32) + (y * sine).astype(np.float32)
    v = (y * cosine / thin).astype(np.float32) - (x * sine / thin).astype(np.float32)
    if kind == _ELLIPSE:
        return np.square(u, out=u) + np.square(v, out=v) <= 1
    np.abs(v, out=v)
    if kind == _RECTANGLE:
        return np.maximum(np.abs(u, out=u), v, out=u) <= 1
    return (u >= -1) & (u + v + v <= 1)


def _photograph(fine: np.ndarray, scenes: list[_Scene]) -> np.ndarray:
    """Linear values of subpixels, float64 [n,2H,2W,C] -> uint8 [n,H,W,C]."""
    x = fine[:, ::2, ::2] + fine[:, 1::2, ::2] + fine[:, ::2, 1::2]
    x = (x + fine[:, 1::2, 1::2]) / _FINER**2
    blur = np.array([scene.blur for scene in scenes]).reshape(-1, 1, 1, 1)
    padded = np.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0)], mode="edge")
    x = x + blur * (padded[:, :-2] + padded[:, 2:] - 2 * x)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (0, 0)], mode="edge")
    x = x + blur * (padded[:, :, :-2] + padded[:, :, 2:] - 2 * x)
    noise = np.array([scene.noise for scene in scenes])
    x = np.clip(x, 0, 1) ** (1 / 2.2) + noise
    return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)
