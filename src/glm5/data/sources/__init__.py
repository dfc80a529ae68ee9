"""Where documents come from: one file for each family of sources, one line in `registry` that names it."""
