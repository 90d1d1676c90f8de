"""The pure half of a worker: sequences, the paged KV cache and the continuous batcher.

Nothing here reads a clock, opens a socket or knows torch, so that the torch worker and a simulated worker are
the same scheduler.
"""
