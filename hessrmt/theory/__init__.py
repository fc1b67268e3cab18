"""Laws of random matrix theory, each with its citation."""
