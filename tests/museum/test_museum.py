import pytest

from tests.museum.exhibits import nothing_but_gradients
from tests.museum.rooms import EXHIBITS

CHECKS = sorted({exhibit.check.__name__: exhibit.check for exhibit in EXHIBITS}.items())


@pytest.mark.slow
@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.fault)
def test_the_fault_is_caught(exhibit):
    with exhibit.put_in():
        caught, saw = exhibit.check()
    assert caught, saw


@pytest.mark.slow
@pytest.mark.parametrize("check", [check for _, check in CHECKS])
def test_the_code_as_it_is_is_not_caught(check):
    caught, saw = check()
    # A network with BatchNormalization must be refused.
    assert caught == (check is nothing_but_gradients), saw
    assert caught == saw.startswith("refused")
