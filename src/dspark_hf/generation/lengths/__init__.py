"""How many tokens are drafted and verified."""
