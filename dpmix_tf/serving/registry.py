"""A privacy card as an entry of the OpenDP registry of deployments.

The registry (Dwork, Kohli and Mulligan 2019; Nanayakkara, Ghazi and Vadhan 2025) lists
deployments of differential privacy, each a YAML file. Its field names are the
registry's; deployments_registry.schema.json is our own writing of them.
"""

import functools
import json
import re
from importlib import resources
from typing import Any

import jsonschema
import yaml

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.attacks import in_percent
from dpmix_tf.privacy.plan import EXAMPLE, PERSON, round_down
from dpmix_tf.serving.card_page import UNKNOWN, sections

# The registry asks for these, and only the model's owner knows them.
_NEEDED = ("curator", "curator_type", "intended_use", "region")
_UNITS = {EXAMPLE: "image", PERSON: "person"}


def to_yaml(card: dict[str, Any]) -> str:
    """Returns a card as an entry of the registry, to be reviewed and sent there.

    Args:
      card: of version 2.

    Raises:
      DPMixError: see to_registry.
    """
    return yaml.safe_dump(
        to_registry(card), sort_keys=False, allow_unicode=True, width=88
    )


def to_registry(card: dict[str, Any]) -> dict[str, Any]:
    """Returns a card as an entry of the registry.

    Args:
      card: of version 2.

    Returns:
      What follows deployments_registry.schema.json. Fields of which nobody said
      anything are "not stated".

    Raises:
      DPMixError: the card is an older one, has no guarantee, or does not say what the
        registry asks for.
    """
    if card["schema_version"] == 1:
        raise DPMixError(
            "This card is of version 1, which lacks fields that the registry asks "
            "for. Export the run again."
        )
    if card["privacy"]["epsilon"] is None:
        raise DPMixError(
            "This card states no guarantee: the registry is for deployments that have "
            "one."
        )
    missing = [name for name in _NEEDED if card["deployment"][name] is None]
    if missing:
        raise DPMixError(
            f"The registry asks for {', '.join(missing)}, which this card does not "
            "state. Repeat the training command with --config.card.NAME=..., which "
            "trains nothing anew, and export the run again."
        )
    entry = {
        "url_slug": _slug(card),
        "deployment": {
            "basic": _basic(card),
            "dp_variant": _variant(card),
            "privacy_loss": _loss(card),
            "deployment_model": _model(card),
            "implementation": _implementation(card),
            "administrative": {
                "status": "Draft",
                "registry_authors": [card["deployment"]["curator"]],
                "tier": 3,
            },
        },
    }
    jsonschema.validate(entry, schema())
    return entry


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON schema of an entry."""
    text = resources.files(__package__).joinpath("deployments_registry.schema.json")
    return json.loads(text.read_text(encoding="utf-8"))


def _slug(card: dict[str, Any]) -> str:
    words = f"{card['deployment']['curator']} {card['training_data']['name']}"
    year = card["released"].partition("-")[0]
    return re.sub(r"\W+", "-", f"{words} {year}".lower()).strip("-")


def _basic(card: dict[str, Any]) -> dict[str, Any]:
    told, model, data = card["deployment"], card["model"], card["training_data"]
    described = (
        f"A classifier of images into {len(model['class_names'])} classes "
        f"({model['network']}, {model['parameters']:,} parameters), trained on "
        f"{data['num_examples']:,} records of {data['name']}."
    )
    return {
        "name": f"Image classifier, {data['name']}",
        "data_curators": [
            {
                "data_curator_name": told["curator"],
                "data_curator_type": told["curator_type"],
            }
        ],
        "description": f"{described} {told['purpose'] or ''}".strip(),
        "intended_use": told["intended_use"],
        "data_product_type": "Machine learning model",
        "data_product_region": told["region"],
        "publication_date": card["released"],
    }


def _variant(card: dict[str, Any]) -> dict[str, str]:
    unit = _UNITS[card["privacy"]["record"]]
    return {
        "variant_name": "Approximate DP",
        "data_domain": f"All sets of images with labels, {_per(unit)}.",
        "unprotected_quantities": f"{'; '.join(card['not_covered'])}.",
    }


def _per(unit: str) -> str:
    return "grouped by person" if unit == "person" else "each a record of its own"


def _loss(card: dict[str, Any]) -> dict[str, Any]:
    privacy, meaning = card["privacy"], card["meaning"]
    found = in_percent(meaning["true_positive_rates"]["0.01"])
    details = (
        f"By dp-accounting {privacy['accountant_version']}, "
        f"{privacy['accountant'].upper()} accountant. No attack that accuses 1 % of "
        f"those who are not in the data finds more than {found} of those who are."
    )
    audit = card["audit"]
    if audit is not None:
        details += (
            f" An audit by {audit['canaries']:,} canaries shows epsilon >= "
            f"{round_down(audit['epsilon_lower_bound'])} with "
            f"{audit['confidence']:.0%} confidence."
        )
    return {
        "privacy_unit": _UNITS[privacy["record"]],
        "privacy_unit_details": f"Adjacent: {privacy['adjacency']}.",
        "number_of_privacy_units": card["training_data"]["num_examples"],
        "privacy_parameters": {
            "epsilon": privacy["epsilon"],
            "delta": privacy["delta"],
        },
        "privacy_parameters_details": details,
    }


def _model(card: dict[str, Any]) -> dict[str, str]:
    return {
        "model_name": "Central",
        "trust_assumptions": "The curator is trusted: they hold the records, the "
        "secret seed and the checkpoints. Nobody else is.",
        "actors": "The curator; whoever receives the model, or sees what it answers. "
        "The guarantee is for an attacker who knows all other records and sees the "
        "weights after every update.",
        "release_type": "One release",
        "release_type_details": "Other releases from the same records are not covered.",
        "data_source_type": "Static",
        "access_type": "Non-interactive",
        "access_type_details": card["deployment"]["access"] or UNKNOWN,
    }


def _implementation(card: dict[str, Any]) -> dict[str, str]:
    told = sections(card)
    privacy, mechanism = told["Privacy"], told["Mechanism"]
    software = ", ".join(" ".join(pair) for pair in told["Software"].items())
    return {
        "preprocessing_and_hyperparameter_tuning": (
            f"Views per record: {told['Model and data']['views per example']}. "
            f"Hyperparameters: {mechanism['hyperparameters']}."
        ),
        "mechanisms": (
            "DP-SGD: the subsampled Gaussian mechanism. Sampling: "
            f"{privacy['sampling']}. Clip norm {privacy['clip norm']} "
            f"({mechanism['clipping']}), noise multiplier "
            f"{privacy['noise multiplier']}. Floating point: "
            f"{mechanism['arithmetic']}. Random numbers: "
            f"{mechanism['random numbers']}. Software: {software}."
        ),
        "composition": f"By {privacy['accountant']}: {mechanism['composed']}.",
        "post_processing": f"{mechanism['after the noise']}.",
        "justification": card["deployment"]["justification"] or UNKNOWN,
        "utility": "; ".join(f"{n}: {value}" for n, value in told["Tests"].items()),
        "additional_information": card["statement"],
    }
