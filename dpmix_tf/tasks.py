"""Tasks: one class per image, or several labels, some of which are not known."""

SINGLE_LABEL, MULTI_LABEL = TASKS = ("single_label", "multi_label")
