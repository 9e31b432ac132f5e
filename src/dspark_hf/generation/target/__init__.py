"""Passes of the target: over the prompt, over packed rows of drafts, and what belongs to them."""
