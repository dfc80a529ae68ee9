"""Documents to batches: sources of text, quality rules, the corpus on disk, and the loader that mixes it into rows."""
