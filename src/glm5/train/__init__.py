"""Batches become better weights: the optimiser, the schedules, the trainer and the stages that use it."""
