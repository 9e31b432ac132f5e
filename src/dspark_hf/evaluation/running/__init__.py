"""Runs of `generate()`, one way and another, each measured and kept."""
