"""Finding out: what is searched, questions made from it, and how answers are graded (GLM-5 report, section 4.2.3)."""
