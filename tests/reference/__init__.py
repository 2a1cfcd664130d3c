"""Slow twins, written from the equations, in float64."""
