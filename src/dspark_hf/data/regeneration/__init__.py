"""Text that the target writes, in this process or on a server: answers to conversations, or whole ones of its own."""

from .local import regenerate, synthesize

__all__ = ["regenerate", "synthesize"]
