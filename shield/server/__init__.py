"""The HTTP edge: a decision listener for gateways and callers, and an admin listener for operators."""
