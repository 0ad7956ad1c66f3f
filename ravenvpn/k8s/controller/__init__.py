"""What keeps `Gateway.status` true: `view` holds what the API server said, pure functions decide, `writer` writes.

Which node is active is not decided here but in `mesh.status`, who wins a conflict in `mesh.conflicts`. A dictionary
of the API becomes a value in `facts`, and a value becomes one in `conditions`, `public`, `notices` and `crd`.
"""
