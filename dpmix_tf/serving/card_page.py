"""The privacy card as a page: Markdown, and HTML that prints to one sheet of A4."""

import html
from typing import Any

from dpmix_tf.privacy.attacks import in_percent
from dpmix_tf.privacy.ledger import CHOSEN, CLASS_COUNTS, SHARED, SYSTEM
from dpmix_tf.privacy.plan import PERSON, round_down, round_up
from dpmix_tf.serving.card_blocks import DEPLOYMENT

Rows = dict[str, str]

UNKNOWN = "not stated"
_SEEDS = {
    SYSTEM: "from the operating system",
    CHOSEN: "chosen by the user",
    SHARED: "secret, shared by the runs of an experiment",
}
_LONGEST = 260  # characters of a cell of HTML; Markdown and JSON have all of them
_MOST_CLASSES = 12  # that HTML names


def to_markdown(card: dict[str, Any]) -> str:
    """The card as one page of Markdown."""
    lines = ["# Privacy card", ""]
    if card.get("warning"):
        lines += [f"**{_cell(card['warning'])}**", ""]
    for title, rows in sections(card).items():
        lines += [f"## {title}", "", "| | |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
        lines.append("")
    statement = html.escape(card["statement"], quote=False).replace("\n", "\n\n")
    return "\n".join([*lines, "## What is guaranteed", "", statement]) + "\n"


def to_html(card: dict[str, Any]) -> str:
    """The card as one self-contained page of HTML, for one sheet of A4.

    Long texts are cut there. Nothing in it is loaded from elsewhere, and whatever users
    wrote, names of classes included, is escaped.
    """
    told = sections(card)
    blocks = [
        f"<section><h2>{html.escape(title)}</h2><table>"
        + "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(_shortened(value))}</td></tr>"
            for name, value in rows.items()
        )
        + "</table></section>"
        for title, rows in told.items()
    ]
    warning = card.get("warning")
    statement = card["statement"].split("\n")
    return _PAGE.format(
        warning=f'<p class="warning">{html.escape(warning)}</p>' if warning else "",
        sections="\n".join(blocks),
        statement="".join(f"<p>{html.escape(line)}</p>" for line in statement),
    )


def sections(card: dict[str, Any]) -> dict[str, Rows]:
    """Returns what a page shows: title -> name -> value, of any version of the card."""
    found = {
        "Release": _release(card),
        "Privacy": _privacy(card),
        "What an attack can do": _meaning(card),
        "Mechanism": _mechanism(card),
        "Model and data": _model(card),
        "Tests": _measured(card),
        "Software": {
            name: value or "unknown" for name, value in card["software"].items()
        },
    }
    return {title: rows for title, rows in found.items() if rows}


def _release(card: dict[str, Any]) -> Rows:
    if "deployment" not in card:
        return {}
    names = {name: name.replace("_", " ") for name in DEPLOYMENT}
    names |= {"justification": "why this epsilon", "curator_type": "kind of curator"}
    told = card["deployment"]
    rows = {names[name]: told[name] or UNKNOWN for name in DEPLOYMENT}
    return {"date of this card": card["released"], **rows}


def _privacy(card: dict[str, Any]) -> Rows:
    privacy = card["privacy"]
    epsilon = privacy["epsilon"]
    # Older cards record only whether the user chose the seed.
    chosen = CHOSEN if privacy["seed_chosen_by_user"] else SYSTEM
    origin = privacy.get("seed_origin", chosen)
    return {
        "epsilon": "none: no guarantee" if epsilon is None else round_up(epsilon),
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
    }


def _meaning(card: dict[str, Any]) -> Rows:
    if "meaning" not in card:
        return {}
    rows = {}
    meaning, audit = card["meaning"], card["audit"]
    if meaning is None:
        rows["any attack"] = "no limit: there is no guarantee"
    else:
        rows = {
            f"finds, at {100 * float(rate):g} % false alarms": in_percent(found)
            for rate, found in meaning["true_positive_rates"].items()
        }
        mu = meaning["mu"]
        rows["advantage"] = in_percent(meaning["advantage"])
        rows["mu of Gaussian DP"] = "none" if mu is None else round_up(mu)
    rows["audit"] = "none"
    if audit is not None:
        verdict = "REFUTED" if audit["refuted"] else "not refuted"
        rows["audit"] = (
            f"epsilon >= {round_down(audit['epsilon_lower_bound'])} with "
            f"{audit['confidence']:.0%} confidence, by {audit['canaries']:,} canaries "
            f"in a training of its own: {verdict}"
        )
    return rows


def _mechanism(card: dict[str, Any]) -> Rows:
    if "mechanism" not in card:
        return {}
    mechanism, tuning = card["mechanism"], card["tuning"]
    variant, gamma = mechanism["variant"], mechanism["gamma"]
    clipping = mechanism["clipping"] + (f", gamma {gamma:g}" if gamma else "")
    rows = {
        "variant": f"{variant} DP, {mechanism['deployment_model']} model"
        if variant
        else "none: no guarantee",
        "clipping": f"{clipping}; Gaussian noise",
        "composed": "; ".join(
            f"{one['release']}: {one['updates']:,} at noise multiplier "
            f"{one['noise_multiplier']:.6g}, q = {one['sampling_probability']:.6g}"
            for one in mechanism["composition"]
        )
        or "nothing",
        "after the noise": "; ".join(mechanism["post_processing"]),
        "hyperparameters": UNKNOWN
        if tuning is None
        else f"chosen among {tuning['trials']:g} trials on average, which epsilon "
        "covers",
        "arithmetic": "; ".join(
            f"{name.replace('_', ' ')}: {value}"
            for name, value in mechanism["arithmetic"].items()
        ),
        "random numbers": "; ".join(
            f"{name}: {value}"
            for name, value in mechanism["random_generator"].items()
            if name != "cryptographic"
        )
        + "; not cryptographic",
    }
    if mechanism["images_read_per_person"] is not None:
        rows["images of a person"] = (
            f"up to {mechanism['images_read_per_person']} an update, of any number"
        )
    return rows


def _model(card: dict[str, Any]) -> Rows:
    privacy, model, data = card["privacy"], card["model"], card["training_data"]
    return {
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
    }


def _measured(card: dict[str, Any]) -> Rows:
    """Rows on what was measured on test examples, with noise or without."""
    release = card.get("test_release")
    if release is not None:
        return _noised(release)
    accuracy, figures = card["test_accuracy"], card.get("test_figures") or {}
    if "mean_auroc" in figures:
        of_labels = {
            f"test AUROC, {name}": _interval(each["auroc"])
            for name, each in figures["by_label"].items()
        }
        return {
            "test AUROC, mean (95 % interval)": _interval(figures["mean_auroc"])
        } | of_labels
    if "accuracy" not in figures:
        shown = "not measured" if accuracy is None else f"{accuracy:.4f}"
        return {"test accuracy": shown}
    rows = {
        "test accuracy (95 % interval)": _interval(figures["accuracy"]),
        "balanced accuracy": f"{figures['balanced_accuracy']:.4f}",
        "calibration error": f"{figures['calibration_error']:.4f}",
    }
    known = {
        name: each["accuracy"]
        for name, each in figures.get("by_class", {}).items()
        if each["accuracy"] is not None
    }
    if known:
        lowest = sorted(known, key=lambda name: known[name])
        rows["accuracy by class, lowest first"] = ", ".join(
            f"{name}: {known[name]:.4f}" for name in lowest
        )
    for column, groups in (card.get("subgroups") or {}).items():
        rows[f"by {column}"] = ", ".join(
            f"{name}: {_interval(each.get('accuracy') or each.get('mean_auroc'))}"
            for name, each in groups.items()
        )
    return rows


def _noised(release: dict[str, Any]) -> Rows:
    accuracy, epsilon = release["accuracy"], release["epsilon"]
    what = "people" if release["record"] == PERSON else "examples"
    return {
        "test accuracy, with noise": "not of these weights"
        if accuracy is None
        else f"{accuracy:.4f}",
        "noise": f"standard deviation {release['noise']:g} on the number of "
        f"{release['records']:,} test {what} classified correctly",
        f"cost to each of these {what}": "no guarantee"
        if epsilon is None
        else f"epsilon = {round_up(epsilon)} at delta = {release['delta']:g}, apart "
        "from the training records' epsilon",
    }


def _interval(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not known"
    return f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})"


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


def _cell(value: str) -> str:
    """Markdown passes HTML on, so that it is escaped there too."""
    return html.escape(value, quote=False).replace("|", "\\|").replace("\n", " ")


def _shortened(value: str) -> str:
    parts = value.split(", ")
    if len(parts) > _MOST_CLASSES:
        value = ", ".join(parts[:_MOST_CLASSES]) + f", ... ({len(parts)} in all)"
    return value if len(value) <= _LONGEST else value[:_LONGEST].rstrip() + " ..."


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Privacy card</title>
<style>
@page {{ size: A4; margin: 9mm; }}
body {{ font: 14px/1.35 sans-serif; margin: 1rem auto; max-width: 60rem;
  padding: 0 1rem; }}
h1 {{ font-size: 1.5em; margin: 0 0 .3em; }}
h2 {{ font-size: 1.05em; margin: .5em 0 .1em; }}
table {{ border-collapse: collapse; width: 100%; table-layout: fixed; }}
th, td {{ border-top: 1px solid #bbb; padding: .1em .4em .1em 0; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }}
th {{ font-weight: normal; color: #444; width: 33%; }}
p {{ margin: .3em 0; }}
.warning {{ border: 2px solid #a00; padding: .3em .5em; font-weight: bold; }}
main {{ columns: 2 22rem; column-gap: 1.5em; }}
@media print {{
  body {{ font-size: 7.2pt; line-height: 1.2; margin: 0; padding: 0; max-width: none; }}
  main {{ columns: 2; column-gap: 5mm; }}
}}
</style>
</head>
<body>
<h1>Privacy card</h1>
{warning}
<main>
{sections}
</main>
<h2>What is guaranteed</h2>
{statement}
</body>
</html>
"""
