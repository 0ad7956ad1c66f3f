"""The controller: elects the active endpoints of each region and writes `Gateway.status`.

`informers` fill the `cache`; `decide` compares it with the desired state (`desired_status`, `desired_services`,
`conditions`, `published_keys`); `reconcile` queues, and `writer` writes what differs. The rules of the election are
in `mesh.status`, those of conflicts in `mesh.conflict_index`; they do not belong here. Dictionaries of the API become
values in `decode` and `decode_services` only.
"""
