"""Structures, graphs and stores."""
