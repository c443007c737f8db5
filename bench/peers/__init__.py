"""One adapter a peer, each with the same names: NAME, make(rate_per_s) -> hit(key) -> bool."""
