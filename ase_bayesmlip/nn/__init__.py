"""Equivariant potentials: radial and angular bases, message passing, heads, derivatives."""
