"""Whether the output is the target's, on random targets."""
