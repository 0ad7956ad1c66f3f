from __future__ import annotations

import pytest

LAB_TOOLS = ("ip", "nft", "nsenter", "unshare", "sysctl", "ping")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.needs(*LAB_TOOLS))
