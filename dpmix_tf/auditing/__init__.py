"""Attacks on training runs and trained models, and lower bounds on epsilon."""

from dpmix_tf.auditing.bounds import Bound, Roc
from dpmix_tf.auditing.membership import attack_membership
from dpmix_tf.auditing.pictures import describe_roc, draw_rocs
from dpmix_tf.auditing.training_audit import Audit, audit_many_runs, audit_one_run

__all__ = [
    "Audit",
    "Bound",
    "Roc",
    "attack_membership",
    "audit_many_runs",
    "audit_one_run",
    "describe_roc",
    "draw_rocs",
]
