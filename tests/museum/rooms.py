"""All exhibits, room by room."""

from tests.museum import (
    changed_data,
    exhibits,
    forgetting,
    guessable_seed,
    hidden_state,
)

EXHIBITS = [
    *exhibits.EXHIBITS,
    *forgetting.EXHIBITS,
    *changed_data.EXHIBITS,
    *hidden_state.EXHIBITS,
    *guessable_seed.EXHIBITS,
]
