"""Training by the protocol of [B]: makes the points of expansion whose spectra are studied."""
