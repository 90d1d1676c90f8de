"""Homing's router: the pure core that decides and the live shell that carries decisions out."""
