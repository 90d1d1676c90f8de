"""Tests of the pure core; a package, so that they can share `fleets`."""
