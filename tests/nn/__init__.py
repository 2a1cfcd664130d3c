"""Tests of single parts of the model."""
