"""Commands for people who talk to a model."""
