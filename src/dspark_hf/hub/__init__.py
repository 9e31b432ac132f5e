"""Where models come from and go to."""
