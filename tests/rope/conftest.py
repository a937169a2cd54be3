"""Angles are counted by the million, and minima compared to the last digit."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def as_users_compile(optimised):
    """See `optimised`."""
