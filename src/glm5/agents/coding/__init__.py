"""The coding agent: one session on one tree, and its faces (docs/code.md)."""
