"""A server with OpenAI's interface: transformers' own, with a drafter attached to what it loads."""
