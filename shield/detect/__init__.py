"""Detectors: abuse recognised from the stream of requests and outcomes. Pure: time is an argument."""
