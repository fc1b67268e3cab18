"""Conductors: one for each command, from settings to a result."""
