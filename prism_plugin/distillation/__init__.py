"""Distillation: frames labelled by a teacher, from which a potential learns (``prism label``, docs/labels.md)."""
