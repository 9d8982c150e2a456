"""Options of the whole test suite."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew; review its diff")


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden")
