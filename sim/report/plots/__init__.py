"""The plots: each a function from plain data to a matplotlib figure, in one style. Part of the extra `sim`."""
