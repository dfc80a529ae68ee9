"""Weights become tokens."""
