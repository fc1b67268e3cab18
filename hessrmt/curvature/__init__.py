"""Exact curvature matrices and their certified spectra."""
