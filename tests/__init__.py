"""Tests: reference, symmetry, contract, golden, door; all offline."""
