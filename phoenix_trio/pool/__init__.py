"""Many connections: the pool and striped transfers (floor 4)."""
