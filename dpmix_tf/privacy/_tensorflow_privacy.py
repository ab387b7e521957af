"""The only door to TensorFlow Privacy.

`import tensorflow_privacy` pulls in tensorflow-estimator, which TensorFlow >= 2.16 does
not have. Its own hook for stand-alone scripts, an attribute on `sys`, skips that and
leaves the query classes importable. Nothing else in dpmix_tf imports the package.
"""

import sys

sys.skip_tf_privacy_import = True  # type: ignore[attr-defined]

from tensorflow_privacy.privacy.dp_query.gaussian_query import (  # noqa: E402
    GaussianSumQuery,
)

__all__ = ["GaussianSumQuery"]
