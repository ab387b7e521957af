"""What bin/privacy.py does with a card: print, explain, verify."""

import dataclasses
import json
import sys

from dpmix_tf.cli import explain
from dpmix_tf.cli.startup import start_tensorflow
from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import Ledger


def print_card(path: str, as_json: bool) -> None:
    """Prints an exported model's card as Markdown or JSON."""
    start_tensorflow()
    from dpmix_tf.serving.privacy_card import read_card, to_markdown

    card = read_card(path)
    print(json.dumps(card, indent=2) if as_json else to_markdown(card), end="")


def print_entry(path: str) -> None:
    """Prints the card as an entry of the deployments registry, YAML."""
    start_tensorflow()
    from dpmix_tf.serving.privacy_card import read_card
    from dpmix_tf.serving.registry import to_yaml

    print(to_yaml(read_card(path)), end="")


def explain_card(path: str, group_size: int) -> explain.Explained:
    """Explains what a card's guarantee means.

    Raises:
      DPMixError: there is no card, or it has no ledger.
    """
    start_tensorflow()
    from dpmix_tf.serving.privacy_card import read_card

    privacy = read_card(path)["privacy"]
    ledger = Ledger.from_list(privacy.get("ledger", []), path)
    if not ledger.parts() and privacy["updates"]:
        raise DPMixError(
            f"{path} does not say which updates its network was trained with; it was "
            "written by an older version of dpmix_tf. Export the run again."
        )
    return explain.explain(
        ledger,
        delta=privacy["delta"],
        accountant=privacy["accountant"],
        group_size=group_size,
        seed_is_known=privacy["seed_chosen_by_user"],
    )


def verify(path: str, as_json: bool) -> None:
    """Prints whether a card follows from its own numbers; exits with 1 if not."""
    start_tensorflow()
    from dpmix_tf.serving import verify_card

    checks = verify_card.verify_card(path)
    if as_json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        print(verify_card.to_text(checks))
    if not all(check.agrees for check in checks):
        sys.exit(1)
