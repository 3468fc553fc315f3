"""What operators see: metrics, drift, logs, traces."""
