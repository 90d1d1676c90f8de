"""Experiments: one scenario run, policies beside each other, grids of parameters, and journals replayed.

Rule 1: nothing here knows what time it is. Progress is told to a callback; rates and time left are the caller's.
Rule 2: results come in the order of the question, whatever finishes first and on however many cores (I5).
"""
