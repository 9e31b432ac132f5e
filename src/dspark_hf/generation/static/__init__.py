"""Rounds of fixed shapes: buffers that stay where they are, lengths in tensors, one host read a round."""
