"""Which controller elects: this one, or OpenYurt's yurt-manager."""

from __future__ import annotations

from ravenvpn.k8s.controller.decode import CachedGateway, StatusWriter, extra_status_fields, read_gateway
from ravenvpn.k8s.controller.options import ElectMode
from ravenvpn.k8s.controller.yurt_manager import election_owner

T0 = 1_769_860_800.0  # 2026-01-31T12:00:00Z


def written(name: str = "factory", **writers: float) -> CachedGateway:
    """Return a Gateway whose status was written at these times by `yurt` (yurt-manager) and `ours`."""
    names = {"yurt": "yurt-manager", "ours": "raven-vpn-controller", "kubectl": "kubectl-edit"}
    entries = tuple(StatusWriter(names[manager], at) for manager, at in writers.items())
    return CachedGateway(name, "", "1", 1, None, writers=entries)


def elects(
    *gateways: CachedGateway, lease: float | None = None, elect: ElectMode = ElectMode.AUTO
) -> tuple[bool, str]:
    owner = election_owner(elect, gateways, "raven-vpn-controller", lease, T0)
    return owner.elects, owner.why


def test_without_yurt_manager_this_controller_elects() -> None:
    assert elects(written(ours=T0 - 5, kubectl=T0))[0]


def test_it_steps_back_where_yurt_manager_wrote_last_and_names_the_gateway() -> None:
    assert elects(written("office", ours=T0 - 60, yurt=T0 - 30), written()) == (
        False,
        "yurt-manager wrote the status of Gateway office at 2026-01-31T11:59:30Z",
    )


def test_an_idle_yurt_manager_is_recognised_by_its_lease() -> None:
    assert not elects(written(yurt=T0 - 90 * 86400), lease=T0 - 10)[0]


def test_it_elects_if_yurt_manager_is_silent_for_an_hour() -> None:
    assert elects(written(yurt=T0 - 7200))[0]
    assert elects(written(yurt=T0 - 7200), lease=T0 - 7100)[0]


def test_it_elects_if_its_own_write_is_the_later_one() -> None:
    assert elects(written(yurt=T0 - 60, ours=T0 - 30))[0]


def test_own_and_defer_ignore_yurt_manager() -> None:
    assert elects(written(yurt=T0), lease=T0, elect=ElectMode.OWN)[0]
    assert not elects(written(ours=T0), elect=ElectMode.DEFER)[0]


def test_writers_of_a_status_are_read_from_managed_fields() -> None:
    """API servers before 1.22 do not name the subresource; the fields of the entry show that it is the status."""
    document = {
        "apiVersion": "raven.openyurt.io/v1beta1",
        "kind": "Gateway",
        "metadata": {
            "name": "factory",
            "managedFields": [
                {
                    "manager": "kubectl",
                    "operation": "Update",
                    "time": "2026-01-31T12:00:00Z",
                    "fieldsV1": {"f:spec": {}},
                },
                {
                    "manager": "yurt-manager",
                    "operation": "Update",
                    "subresource": "status",
                    "time": "2026-01-31T12:00:00Z",
                },
                {"manager": "old", "time": "2026-01-31T11:00:00Z", "fieldsV1": {"f:status": {"f:nodes": {}}}},
            ],
        },
    }
    assert read_gateway(document).writers == (StatusWriter("old", T0 - 3600), StatusWriter("yurt-manager", T0))


def test_extra_status_fields_of_a_definition() -> None:
    def definition(version: str, **properties: object) -> dict[str, object]:
        schema = {"openAPIV3Schema": {"properties": {"status": {"properties": properties}}}}
        return {"spec": {"versions": [{"name": "v1alpha1"}, {"name": version, "schema": schema}]}}

    assert extra_status_fields(definition("v1beta1", nodes={})) == frozenset()
    assert extra_status_fields(definition("v1beta1", nodes={}, conditions={}, nodeCount={})) == {
        "conditions",
        "nodeCount",
    }
    assert extra_status_fields(definition("v1alpha1", conditions={})) == frozenset()
    assert extra_status_fields({"spec": {"versions": None}}) == frozenset()
