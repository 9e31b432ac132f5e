"""What becomes of logits: tokens, and when to stop."""
