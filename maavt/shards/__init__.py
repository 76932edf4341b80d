"""Tars -> samples -> batches of pairs."""
