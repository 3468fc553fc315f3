"""Metrics, the protocol, paired comparisons and the stage table."""
