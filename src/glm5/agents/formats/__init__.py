"""Logs in the formats of others, written and read: ATIF of Harbor, and mini-swe-agent's trajectories."""
