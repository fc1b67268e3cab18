"""Devices and the few verbs of linear algebra that run on them."""
