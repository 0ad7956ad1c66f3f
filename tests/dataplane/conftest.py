"""Every scene of this folder that takes `body` runs with each data plane there is."""

from __future__ import annotations

import pytest
from dataplane.rig import BODIES


@pytest.fixture(params=BODIES)
def body(request: pytest.FixtureRequest) -> str:
    return request.param
