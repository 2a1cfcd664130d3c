"""Crystals with targets."""
