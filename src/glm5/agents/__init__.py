"""Loops around a model: what an agent knows is an endpoint, its tools and a task, never whether it is being trained."""
