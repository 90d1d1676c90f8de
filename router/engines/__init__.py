"""Engines that others wrote: what they say of themselves, their load, and how they are spoken to. One file each."""
