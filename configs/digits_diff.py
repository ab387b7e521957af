"""DP-Mix_Diff on digits, with synthetic images rendered from fonts.

  python bin/generate_pool.py --config=configs/digits_diff.py
  python bin/train.py --config=configs/digits_diff.py --workdir=runs/digits_diff

The fonts stand in for a diffusion model, so that nothing has to be downloaded.
"""

from configs import digits


def get_config():
    """Returns the run's configuration."""
    config = digits.get_config()
    config.views.synthetic = 2
    config.pool.path = "pools/digits"
    config.pool.generator = "glyphs"
    config.pool.images_per_class = 200
    return config
