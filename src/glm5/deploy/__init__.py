"""From trained weights to where they are used: other formats and other programs."""
