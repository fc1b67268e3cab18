"""Published experiments, each from nothing to a table, figures and sentences: one file each."""
