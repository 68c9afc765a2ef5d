"""Wrong requests and damaged snapshots: one clear error each."""
