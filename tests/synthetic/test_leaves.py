"""Dead leaves: the same everywhere, and with the statistics that they promise."""

import hashlib

import numpy as np
import pytest

from dpmix_tf.errors import DPMixError
from dpmix_tf.synthetic import SyntheticPool, dead_leaves, fill, leaves
from dpmix_tf.training.config import default_pool

OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])


@pytest.mark.parametrize(
    "shape", [(32, 32, 3), (28, 28, 1), (64, 64, 3), (96, 96, 3), (12, 20, 5)]
)
def test_images_fill_the_range_and_differ(shape):
    images = dead_leaves(6, shape)
    assert images.shape == (6, *shape) and images.dtype == np.uint8
    assert images.max() > 150 and images.min() < 100
    assert (images.reshape(6, -1).std(axis=1) > 1).all()
    assert len({image.tobytes() for image in images}) == 6


def test_the_same_seed_gives_the_same_images_on_every_machine():
    digest = hashlib.sha256()
    for shape in ((32, 32, 3), (28, 28, 1), (16, 24, 5)):
        digest.update(dead_leaves(5, shape, seed=2**40 + 3).tobytes())
    assert (
        digest.hexdigest()
        == "bdddeaecd9ef9f09cc4b02c1694ff0e1361464993bb8ec8124e4a16e9de1ff3c"
    )


def test_a_longer_series_begins_with_the_shorter_one():
    longer = dead_leaves(90, (32, 32, 3), seed=4)
    np.testing.assert_array_equal(longer[:7], dead_leaves(7, (32, 32, 3), seed=4))


def test_another_seed_shares_no_image():
    first, second = (dead_leaves(20, (16, 16, 3), seed=seed) for seed in (0, 1))
    assert not {image.tobytes() for image in first} & {i.tobytes() for i in second}


@pytest.mark.parametrize(
    ("count", "shape", "seed"),
    [(-1, (8, 8, 1), 0), (1, (0, 8, 1), 0), (1, (8, 8, 1), -1)],
)
def test_what_cannot_be_drawn_is_refused(count, shape, seed):
    with pytest.raises(DPMixError, match="positive sides"):
        dead_leaves(count, shape, seed=seed)


def test_the_density_of_sizes_falls_with_the_cube():
    """Leaves of radius r touch the frame in proportion to r^-3 (H+2r)(W+2r)."""
    random = np.random.RandomState(0)
    sides, smallest, largest = (32, 48), 1.0, 40.0
    radii = np.concatenate(
        [leaves._draw_radii(random, sides, smallest, largest) for _ in range(500)]
    )
    assert smallest <= radii.min() and radii.max() <= largest
    edges = np.geomspace(smallest, largest, 9)
    counts, _ = np.histogram(radii, edges)
    middles = np.sqrt(edges[1:] * edges[:-1])
    density = counts / np.diff(edges)
    density = density / ((sides[0] + 2 * middles) * (sides[1] + 2 * middles))
    slope, _ = np.polyfit(np.log(middles), np.log(density), 1)
    assert slope == pytest.approx(-3, abs=0.05)


def test_leaves_are_painted_as_a_slow_painter_would():
    shape = (6, 9, 3)
    scenes = [leaves._draw_scene(0, index, shape) for index in range(3)]
    parts = zip(*(scene.leaves for scene in scenes), strict=True)
    together = leaves._Leaves(*(np.concatenate(part) for part in parts))
    counts = [len(scene.leaves.radii) for scene in scenes]
    top = leaves._topmost(together, counts, (12, 18))
    kinds = set()
    for image, scene in enumerate(scenes):
        for row in range(12):
            for column in range(18):
                point = (np.array([row, column]) + 0.5) / 2
                seen = next(
                    leaf
                    for leaf in range(counts[image])
                    if covers(scene.leaves, leaf, *point)
                )
                kinds.add(scene.leaves.kinds[seen])
                assert top[image, row, column] == sum(counts[:image]) + seen
    assert len(kinds) == 3


def covers(drawn, leaf, y, x):
    """Whether a leaf covers a point, by its corners or its two half axes."""
    centre, angle = drawn.centres[leaf], drawn.angles[leaf]
    y, x = y - centre[0], x - centre[1]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    radius, aspect, kind = drawn.radii[leaf], drawn.aspects[leaf], drawn.kinds[leaf]
    if kind == 0:
        return np.hypot(along, across / aspect) <= radius
    length = radius / np.hypot(1, aspect)
    corners = [(1, aspect), (-1, aspect), (-1, -aspect), (1, -aspect)]
    if kind == 2:
        corners = [(1, 0), (-1, aspect), (-1, -aspect)]
    corners = length * np.array(corners)
    edges = np.roll(corners, -1, axis=0) - corners
    to = np.array([along, across]) - corners
    return bool((edges[:, 0] * to[:, 1] - edges[:, 1] * to[:, 0] >= 0).all())


@pytest.mark.parametrize("side", [32, 64])
def test_power_falls_with_frequency_as_in_photographs(side):
    images = dead_leaves(400, (side, side, 1))[..., 0] / 255
    images = images - images.mean(axis=(1, 2), keepdims=True)
    window = np.outer(np.hanning(side), np.hanning(side))
    power = (np.abs(np.fft.fft2(images * window)) ** 2).mean(axis=0)
    frequency = np.fft.fftfreq(side, 1 / side)
    radius = np.rint(np.hypot(frequency[:, np.newaxis], frequency))
    rings = np.arange(2, side // 2)
    mean = [power[radius == ring].mean() for ring in rings]
    slope, _ = np.polyfit(np.log(rings), np.log(mean), 1)
    assert -2.7 < slope < -1.5


def test_chroma_varies_far_less_than_lightness():
    images = dead_leaves(300, (32, 32, 3)) / 255 @ OPPONENT.T
    lightness, *chroma = images.reshape(-1, 3).var(axis=0)
    assert lightness > 5 * max(chroma) and min(chroma) > lightness / 200


def test_a_pool_of_leaves_has_one_class(tmp_path):
    settings = {**default_pool().to_dict(), "generator": "leaves"}
    settings |= {"images_per_class": 5, "seed": 7}
    for part in (1, 2):
        fill.generate(tmp_path, settings, ("cat", "dog"), (16, 16, 3), part, 2)
    pool = SyntheticPool.load(tmp_path)
    assert pool.class_names == ("leaves",) and len(pool) == 5
    np.testing.assert_array_equal(
        pool.images[2], dead_leaves(1, (16, 16, 3), seed=9)[0]
    )
    with pytest.raises(DPMixError, match="other classes"):
        SyntheticPool.load(tmp_path, class_names=("cat", "dog"))
