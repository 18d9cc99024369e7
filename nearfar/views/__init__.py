"""Pretext tasks: what may change about a sample while it stays the same sample."""
