"""Devices and the few operations of linear algebra that run on them."""
