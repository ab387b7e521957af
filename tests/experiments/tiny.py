"""An experiment of seconds: two arms, tuned, two seeds; or three that break.

Or with fixed views under a frozen encoder.
"""

from configs import digits
from dpmix_tf.experiments import default_experiment


def get_config(kind: str = "good"):
    base = digits.get_config()
    base.network.update(widths=(8,), groups=4)
    base.privacy.update(updates=12, expected_batch_size=32, accountant="rdp")
    base.run.evaluate_every, base.run.checkpoint_every = 6, 2
    views = {"base": 2, "mixed": 0}
    arms = {"plain": {"views": views}, "mixed": {"views": {"base": 1, "mixed": 0}}}
    arms["mixed"]["views"] = {"base": 2, "mixed": 1}
    if kind == "broken":
        arms |= {
            "misspelt": {"views": {"bass": 1}},
            "impossible": {"network": {"groups": 3}},
            "refused": {"views": {"base": 0, "mixed": 0}},
            "third": {"views": {"base": 1, "mixed": 0}},
        }
    config = default_experiment(base, arms)
    config.title = "Tiny"
    config.seeds = 1 if kind == "broken" else 2
    if kind == "encoded":
        base.network = {"name": "scattering"}
        base.views.visits = 2
    if kind == "good":
        config.tune.update({"optimizer": {"learning_rate": (0.5, 1.0)}})
    config.ablations = (("views.base", ("plain", "mixed")),)
    config.published = (("plain", 8.0, "99.9 (.1)", "nowhere"),)
    config.show_views = True
    return config
