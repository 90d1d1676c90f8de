"""Tests of the emulated wide-area network."""
