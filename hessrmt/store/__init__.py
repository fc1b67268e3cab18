"""Results on disk: files of spectra, histories, densities and families of networks."""
