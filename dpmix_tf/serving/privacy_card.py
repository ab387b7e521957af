"""A one-page statement of a trained model's privacy, for people and machines."""

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
from dpmix_tf.privacy.ledger import CHOSEN, CLASS_COUNTS, SHARED, SYSTEM
from dpmix_tf.privacy.plan import PERSON, finite_or_none, round_up
from dpmix_tf.privacy.statement import (
    SEED_WARNINGS,
    adjacency,
    not_covered,
    seed_origin,
    state_guarantee,
)
from dpmix_tf.tasks import SINGLE_LABEL

SCHEMA_VERSION = 1
JSON_FILE = "privacy_card.json"
MARKDOWN_FILE = "privacy_card.md"
_SEEDS = {
    SYSTEM: "from the operating system",
    CHOSEN: "chosen by the user",
    SHARED: "secret, shared by the runs of an experiment",
}


def make_card(
    *,
    metadata: dict[str, Any],
    config: dict[str, Any],
    ledger: Ledger,
    weights: str,
    parameters: int,
    final: dict[str, Any] | None,
    data_name: str | None = None,
) -> dict[str, Any]:
    """Gathers what is published about a run; none of it is secret.

    Args:
      metadata: the checkpoint's metadata, from training.restore.restore_network.
      config: the run's config.json.
      ledger: what was spent, in the checkpoint and in the run's records together.
      weights: "ema" or "raw".
      parameters: the number of the network's parameters.
      final: the last event of a finished run's metrics.jsonl, else None.
      data_name: the name of the training data; default: the config's.

    Returns:
      A card that follows privacy_card.schema.json.
    """
    plan = PrivacyPlan(**metadata["plan"])
    network, views = _without_paths(config["network"]), dict(config["views"])
    accuracy = "test_accuracy_ema" if weights == "ema" else "test_accuracy"
    final = final or {"updates": None}
    measured = final if final["updates"] == metadata["updates"] else {}
    return {
        "warning": SEED_WARNINGS[seed_origin(ledger)],
        "schema_version": SCHEMA_VERSION,
        "model": {
            "network": network.pop("name"),
            "arguments": network,
            "dtype_policy": config["dtype_policy"],
            "parameters": parameters,
            "weights": weights,
            "after_update": metadata["updates"],
            "class_names": list(metadata["class_names"]),
            "image_shape": list(metadata["image_shape"]),
            "task": metadata.get("task", SINGLE_LABEL),
        },
        "privacy": _privacy(plan, ledger, metadata["software"]["dp-accounting"]),
        "training_data": {
            "name": data_name or config["data"]["name"],
            "num_examples": plan.num_examples,
        },
        "views": {"views_per_example": metadata["views_per_example"], **views},
        "public_pool_sha256": metadata["pool_digest"],
        "warm_start": metadata.get("warm_start"),
        "public_weights": config["network"]["name"] == "pretrained",
        "public_weights_sha256": config["network"].get("sha256"),
        "test_accuracy": measured.get(accuracy),
        "test_figures": _without_counts(measured.get("test_figures_ema"))
        if weights == "ema"
        else None,
        "not_covered": list(not_covered(plan)),
        "software": metadata["software"],
        "statement": state_guarantee(ledger, plan),
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
def schema() -> dict[str, Any]:
    """The JSON schema of a card."""
    text = resources.files(__package__).joinpath("privacy_card.schema.json")
    return json.loads(text.read_text(encoding="utf-8"))


def check_card(card: Any, where: str | Path) -> dict[str, Any]:
    """Returns the card if it follows the schema.

    Raises:
      DPMixError: it does not; the message names `where` it was found.
    """
    try:
        jsonschema.validate(card, schema())
    except jsonschema.ValidationError as error:
        raise DPMixError(
            f"{where} is not a valid privacy card: at {error.json_path}: "
            f"{error.message[:200]}."
        ) from error
    return card


def write_card(card: dict[str, Any], folder: Path, prefix: str = "") -> None:
    """Writes the card as JSON, for machines, and as Markdown, for people."""
    check_card(card, "The privacy card")
    write_text_atomic(folder / f"{prefix}{JSON_FILE}", json.dumps(card, indent=2))
    write_text_atomic(folder / f"{prefix}{MARKDOWN_FILE}", to_markdown(card))


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


def to_markdown(card: dict[str, Any]) -> str:
    """The card as one page of Markdown."""
    privacy, model, data = card["privacy"], card["model"], card["training_data"]
    epsilon = privacy["epsilon"]
    shown = "none: no guarantee" if epsilon is None else round_up(epsilon)
    # Older cards record only whether the user chose the seed.
    chosen = CHOSEN if privacy["seed_chosen_by_user"] else SYSTEM
    origin = privacy.get("seed_origin", chosen)
    warning = card.get("warning")
    rows = {
        "epsilon": shown,
        "delta": f"{privacy['delta']:g}",
        "adjacency": privacy["adjacency"],
        "accountant": f"{privacy['accountant'].upper()}, dp-accounting "
        f"{privacy['accountant_version']}",
        "sampling": f"{privacy['sampling']}, probability "
        f"{privacy['sampling_probability']:.6g}, expected batch "
        f"{privacy['expected_batch_size']:g}",
        "noise multiplier": f"{privacy['noise_multiplier']:.6g}",
        "clip norm": f"{privacy['clip_norm']:g}",
        "sensitivity": f"{privacy['sensitivity']:g} clip norms",
        "updates": f"{privacy['updates']:,} of {privacy['planned_updates']:,} planned",
        "trained before": _trained_before(card),
        "seed": _SEEDS[origin],
        "training data": f"{data['name']}, {data['num_examples']:,} "
        + ("people" if privacy.get("record") == PERSON else "examples"),
        "views per example": _views(card["views"]),
        "public pool": f"SHA-256 {card['public_pool_sha256']}"
        if card["public_pool_sha256"]
        else "none",
        "warm start": f"weights trained on the pool of SHA-256 {start['pool']}"
        if (start := card.get("warm_start"))
        else "none",
        "pretrained weights": f"SHA-256 {card['public_weights_sha256']}"
        if card["public_weights_sha256"]
        else ("downloaded by Keras" if card["public_weights"] else "none"),
        "network": f"{model['network']}, {model['parameters']:,} parameters, "
        + ("averaged" if model["weights"] == "ema" else "last update's")
        + f" weights after update {model['after_update']:,}",
        "images": " x ".join(map(str, model["image_shape"])),
        "classes": ", ".join(model["class_names"]),
        **_measured(card),
        **{name: value or "unknown" for name, value in card["software"].items()},
    }
    lines = ["# Privacy card", "", *([f"**{warning}**", ""] if warning else [])]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    statement = card["statement"].replace("\n", "\n\n")
    return "\n".join([*lines, "", "## What is guaranteed", "", statement]) + "\n"


def _without_counts(figures: Any) -> Any:
    """Leaves out numbers of test examples of a class, which may be single people."""
    private = ("examples", "positives", "negatives", "prevalence")
    if not isinstance(figures, dict):
        return figures
    return {
        name: _without_counts(value)
        for name, value in figures.items()
        if name not in private
    }


def _measured(card: dict[str, Any]) -> dict[str, str]:
    """Rows on what was measured on test examples, without noise."""
    accuracy, figures = card["test_accuracy"], card.get("test_figures") or {}

    def interval(found: dict[str, Any] | None) -> str:
        if found is None:
            return "not known"
        return f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})"

    if "mean_auroc" in figures:
        of_labels = {
            f"test AUROC, {name}": interval(each["auroc"])
            for name, each in figures["by_label"].items()
        }
        return {
            "test AUROC, mean (95 % interval)": interval(figures["mean_auroc"])
        } | of_labels
    if "accuracy" not in figures:
        shown = "not measured" if accuracy is None else f"{accuracy:.4f}"
        return {"test accuracy": shown}
    return {
        "test accuracy (95 % interval)": interval(figures["accuracy"]),
        "balanced accuracy": f"{figures['balanced_accuracy']:.4f}",
        "calibration error": f"{figures['calibration_error']:.4f}",
    }


def _trained_before(card: dict[str, Any]) -> str:
    """Describes what was spent on the network under plans before the last one."""
    privacy = card["privacy"]
    earlier = [
        f"{entry['updates']:,} updates at noise multiplier "
        f"{entry['plan']['noise_multiplier']:.6g}"
        for entry in privacy.get("ledger", [])
        if CLASS_COUNTS not in entry["conditions"]
        and any(
            privacy.get(key, value) != value
            for key, value in entry["plan"].items()
            if key != "updates"
        )
        and entry["updates"]
    ]
    return "; ".join(earlier) or "no"


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def _views(views: dict[str, Any]) -> str:
    if views["microbatch"]:
        return f"naive mixup of examples in microbatches of {views['microbatch']}"
    parts = [f"{views['base']} augmented ({views['augment']})"]
    if views["synthetic"]:
        parts.append(f"{views['synthetic']} from the public pool")
    if views["mixed"]:
        parts.append(
            f"{views['mixed']} mixed within the example ({views['mixer']}, alpha "
            f"{views['alpha']:g})"
        )
    return f"{views['views_per_example']}: {', '.join(parts)}"
