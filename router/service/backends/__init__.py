"""Engines that others wrote as workers of the fleet: found, watched, believed as far as they can be, and let go."""
