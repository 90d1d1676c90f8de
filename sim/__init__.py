"""The simulator: many clusters in one process, on virtual time, under the router's own decision code."""
