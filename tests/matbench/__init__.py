"""Matbench."""
