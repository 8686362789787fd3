"""Monitoring of a run: logging, progress, metrics, and requests to stop."""
