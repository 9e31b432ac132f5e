"""Speculation inside transformers' own continuous batching: a step may verify drafts of many requests.

Besides the seam, what leans on private names of transformers; `release` looks for them. The parts of a manager become
subclasses when it makes them: the scheduler drops drafts that do not fit, the inputs ask for the logits of drafts, the
runner keeps tapped states and judges, and the processor takes back what was rejected.

Rejected tokens stay where they are in the paged cache, and are written over: a request's position goes back. Only
tokens that stand complete a block that others may share. A sliding window's ring has room for what is taken back.
"""
