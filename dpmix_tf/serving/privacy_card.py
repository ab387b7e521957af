"""A one-page statement of a trained model's privacy, for people and machines."""

import datetime
import functools
import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path, write_text_atomic
from dpmix_tf.models.encoders import ENCODERS
from dpmix_tf.privacy import Ledger, PrivacyPlan
from dpmix_tf.privacy.ledger import CHOSEN
from dpmix_tf.privacy.plan import finite_or_none
from dpmix_tf.privacy.statement import (
    SEED_WARNINGS,
    adjacency,
    not_covered,
    seed_origin,
    state_guarantee,
)
from dpmix_tf.serving.card_blocks import (
    deployment_of,
    meaning_of,
    mechanism_of,
    read_audit,
    read_subgroups,
    tuning_of,
    without_counts,
)
from dpmix_tf.serving.card_page import to_html, to_markdown
from dpmix_tf.tasks import SINGLE_LABEL

__all__ = [
    "check_card",
    "make_card",
    "read_card",
    "to_html",
    "to_markdown",
    "write_card",
]

SCHEMA_VERSION = 2
_SCHEMAS = {1: "privacy_card.schema.json", 2: "privacy_card_2.schema.json"}
JSON_FILE = "privacy_card.json"
MARKDOWN_FILE = "privacy_card.md"
HTML_FILE = "privacy_card.html"


def make_card(
    *,
    metadata: dict[str, Any],
    config: dict[str, Any],
    ledger: Ledger,
    weights: str,
    parameters: int,
    final: dict[str, Any] | None,
    form: str = "a SavedModel",
    test_release: dict[str, Any] | None = None,
    data_name: str | None = None,
    audit: str | Path | None = None,
    evaluation: str | Path | None = None,
) -> dict[str, Any]:
    """Gathers what is published about a run; none of it is secret.

    Args:
      metadata: the checkpoint's metadata, from training.restore.restore_network.
      config: the run's config.json.
      ledger: what was spent, in the checkpoint and in the run's records together.
      weights: "ema" or "raw".
      parameters: the number of the network's parameters.
      final: the last event of a finished run's metrics.jsonl, else None.
      form: what the model is exported as, in words.
      test_release: what a release of noised accuracy has cost, from privacy.json.
      data_name: the name of the training data; default: the config's.
      audit: path of an audit.json of bin/audit.py, by the same plan.
      evaluation: path of what bin/evaluate.py --by=... has printed of this run.

    Returns:
      A card that follows privacy_card_2.schema.json.

    Raises:
      DPMixError: see card_blocks.read_audit and read_subgroups.
    """
    plan = PrivacyPlan(**metadata["plan"])
    final = final or {"updates": None}
    measured = final if final["updates"] == metadata["updates"] else {}
    privacy = _privacy(plan, ledger, metadata["software"]["dp-accounting"])
    epsilon = privacy["epsilon"]
    return {
        "warning": SEED_WARNINGS[seed_origin(ledger)],
        "schema_version": SCHEMA_VERSION,
        "released": datetime.date.today().isoformat(),
        "deployment": deployment_of(config),
        "model": _model(metadata, config, weights, parameters),
        "privacy": privacy,
        "meaning": meaning_of(ledger, plan.delta, epsilon),
        "mechanism": mechanism_of(
            plan,
            ledger,
            config,
            weights=weights,
            form=form,
            guaranteed=epsilon is not None,
        ),
        "tuning": tuning_of(plan),
        "audit": None if audit is None else read_audit(audit, plan),
        "training_data": {
            "name": data_name or config["data"]["name"],
            "num_examples": plan.num_examples,
        },
        "views": {
            "views_per_example": metadata["views_per_example"],
            **config["views"],
        },
        "public_pool_sha256": metadata["pool_digest"],
        "warm_start": metadata.get("warm_start"),
        "public_weights": config["network"]["name"] == "pretrained",
        "public_weights_sha256": config["network"].get("sha256"),
        **_tested(measured, weights, test_release),
        "subgroups": None
        if evaluation is None
        else read_subgroups(evaluation, metadata["updates"]),
        "not_covered": list(not_covered(plan)),
        "software": metadata["software"],
        "statement": state_guarantee(ledger, plan),
    }


def _model(
    metadata: dict[str, Any], config: dict[str, Any], weights: str, parameters: int
) -> dict[str, Any]:
    """What was trained, and which of its weights these are."""
    network = _without_paths(config["network"])
    return {
        "network": network.pop("name"),
        "arguments": network,
        "dtype_policy": config["dtype_policy"],
        "parameters": parameters,
        "weights": weights,
        "after_update": metadata["updates"],
        "class_names": list(metadata["class_names"]),
        "image_shape": list(metadata["image_shape"]),
        "task": metadata.get("task", SINGLE_LABEL),
    }


def _tested(
    measured: dict[str, Any], weights: str, release: dict[str, Any] | None
) -> dict[str, Any]:
    """What was measured on test records, of these weights; with noise or without."""
    averaged = weights == "ema"
    if release is not None:
        noised = measured.get("test_accuracy_noised") if averaged else None
        release = {"accuracy": noised, **release}
    return {
        "test_accuracy": measured.get(
            "test_accuracy_ema" if averaged else "test_accuracy"
        ),
        "test_figures": without_counts(measured.get("test_figures_ema"))
        if averaged
        else None,
        "test_release": release,
    }


def _privacy(plan: PrivacyPlan, ledger: Ledger, accountant: str) -> dict[str, Any]:
    """What was spent, and by which mechanism, as accounted by a version."""
    epsilon, origin = ledger.epsilon(plan.delta, plan.accountant), seed_origin(ledger)
    return {
        "epsilon": None if origin == CHOSEN else finite_or_none(epsilon),
        "delta": plan.delta,
        "record": plan.record,
        "adjacency": adjacency(plan),
        "accountant": plan.accountant,
        "accountant_version": accountant,
        "sampling": "Poisson",
        "sampling_probability": plan.sampling_probability,
        "expected_batch_size": plan.expected_batch_size,
        "noise_multiplier": plan.noise_multiplier,
        "clip_norm": plan.clip_norm,
        "sensitivity": plan.sensitivity,
        "updates": ledger.updates(plan),
        "planned_updates": plan.updates,
        "seed_origin": origin,
        "seed_chosen_by_user": origin == CHOSEN,
        "ledger": ledger.to_list(),
    }


def _without_paths(network: dict[str, Any]) -> dict[str, Any]:
    """Returns a network's arguments without the paths of the user's files."""
    network = dict(network)
    if network["name"] == "pretrained":
        for name in ("weights", "text_embeddings"):
            network.pop(name, None)
        if network["encoder"] not in ENCODERS:
            network["encoder"] = "a file"
    return network


@functools.cache
def schema(version: int = SCHEMA_VERSION) -> dict[str, Any]:
    """The JSON schema of a version of the card."""
    text = resources.files(__package__).joinpath(_SCHEMAS[version])
    return json.loads(text.read_text(encoding="utf-8"))


def check_card(card: Any, where: str | Path) -> dict[str, Any]:
    """Returns the card if it follows the schema of its version.

    Raises:
      DPMixError: it does not; the message names `where` it was found.
    """
    version = card.get("schema_version") if isinstance(card, dict) else None
    known = version if version in (1, SCHEMA_VERSION) else SCHEMA_VERSION
    try:
        jsonschema.validate(card, schema(known))
    except jsonschema.ValidationError as error:
        raise DPMixError(
            f"{where} is not a valid privacy card: at {error.json_path}: "
            f"{error.message[:200]}."
        ) from error
    return card


def write_card(card: dict[str, Any], folder: Path, prefix: str = "") -> None:
    """Writes the card as JSON, for machines, and as Markdown and HTML, for people."""
    check_card(card, "The privacy card")
    write_text_atomic(folder / f"{prefix}{JSON_FILE}", json.dumps(card, indent=2))
    write_text_atomic(folder / f"{prefix}{MARKDOWN_FILE}", to_markdown(card))
    write_text_atomic(folder / f"{prefix}{HTML_FILE}", to_html(card))


def read_card(path: str | Path) -> dict[str, Any]:
    """Reads and checks a card.

    Args:
      path: its JSON file, an exported version (models/digits/1), or the folder of
        versions (models/digits), of which the newest is read.

    Raises:
      DPMixError: there is no card, or it is damaged.
    """
    path = local_path(path, "The path of the card")
    if path.is_dir():
        versions = exported_versions(path)
        version = path / str(versions[-1]) if versions else path
        path = version / "assets.extra" / JSON_FILE
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DPMixError(
            f"There is no privacy card in {path}: {error}. Expected a model exported "
            f"by bin/export.py, or its {JSON_FILE}."
        ) from error
    return check_card(card, path)


def exported_versions(folder: Path) -> list[int]:
    """Lists the versions in a folder that TensorFlow Serving would see, in order."""
    return sorted(
        int(entry.name)
        for entry in folder.iterdir()
        if entry.name.isdecimal() and entry.is_dir()
    )
