"""The only module that imports TensorFlow Privacy.

`import tensorflow_privacy` pulls in tensorflow-estimator, which TensorFlow >= 2.16 does
not have. The package's own hook for stand-alone scripts, an attribute on `sys`, skips
that import and leaves the query classes importable.
"""

import sys

sys.skip_tf_privacy_import = True  # type: ignore[attr-defined]

from tensorflow_privacy.privacy.dp_query.gaussian_query import (  # noqa: E402
    GaussianSumQuery,
)

__all__ = ["GaussianSumQuery"]
