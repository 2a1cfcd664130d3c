"""Structures, crystal graphs, and the container that holds many of them."""
