"""Where drafts come from: the drafter with its context, and lookup."""
