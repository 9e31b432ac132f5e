"""Requests that come and go: conversations, continuous batching, and the server."""
