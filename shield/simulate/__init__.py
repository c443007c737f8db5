"""A policy tried on recorded traffic: the same decisions as live, on virtual time."""
