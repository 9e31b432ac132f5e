"""What is asked: the tasks, and prompts as token ids."""
