"""What a drafter is made of, as `config.json` has it."""
