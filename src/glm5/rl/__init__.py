"""Trajectories become updates: records, staleness, groups, losses, and what steers the rollouts."""
