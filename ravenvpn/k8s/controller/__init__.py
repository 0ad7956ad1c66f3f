"""The controller: `cache` holds API objects, pure functions decide, `writer` writes `Gateway.status`.

`mesh.status` elects the active endpoints, `mesh.conflict_index` decides conflicts; this package does neither.
`decode` turns API objects into values; `conditions`, `services`, `events` and `crd` turn values into API objects.
"""
