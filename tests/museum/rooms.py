"""All exhibits, room by room."""

from tests.museum import (
    audit_sensitivity,
    changed_data,
    exhibits,
    forgetting,
    guessable_seed,
    hidden_state,
    people,
    workers,
)

EXHIBITS = [
    *exhibits.EXHIBITS,
    *forgetting.EXHIBITS,
    *changed_data.EXHIBITS,
    *hidden_state.EXHIBITS,
    *guessable_seed.EXHIBITS,
    *workers.EXHIBITS,
    *audit_sensitivity.EXHIBITS,
    *people.EXHIBITS,
]
