"""Everything that touches a cluster, and nothing that knows about search."""
