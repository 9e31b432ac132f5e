"""Training and evaluation data: conversations as ids and masks, and text that the target writes itself."""
