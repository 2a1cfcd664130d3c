"""Tests of labelling by a teacher."""
