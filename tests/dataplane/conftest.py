"""Parametrization of `body`: each test that takes it runs with every available data plane."""

from __future__ import annotations

import pytest
from dataplane.rig import BODIES


@pytest.fixture(params=BODIES)
def body(request: pytest.FixtureRequest) -> str:
    return request.param
