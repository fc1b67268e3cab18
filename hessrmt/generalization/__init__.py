"""Normalised networks: margins, gradient flow, what training losses say about test losses."""
