"""The marker of the tests that play the whole demonstration."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than 40 s on two cores")
