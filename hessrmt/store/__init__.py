"""Spectra on disk."""
