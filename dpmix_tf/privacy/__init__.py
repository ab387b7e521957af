"""Everything that carries the guarantee, and nothing that does not."""

from dpmix_tf.privacy.ledger import Ledger
from dpmix_tf.privacy.plan import PrivacyPlan

__all__ = ["Ledger", "PrivacyPlan"]
