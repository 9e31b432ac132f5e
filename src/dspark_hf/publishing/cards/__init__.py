"""Model cards: their facts, text, plots and serving commands."""
