"""All exhibits, room by room."""

from tests.museum import changed_data, exhibits, forgetting

EXHIBITS = [
    *exhibits.EXHIBITS,
    *forgetting.EXHIBITS,
    *changed_data.EXHIBITS,
]
