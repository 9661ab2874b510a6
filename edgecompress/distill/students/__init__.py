"""Smaller models made of a teacher: the same kinds of layers, but fewer, narrower, and of lower rank."""

from edgecompress.distill.students.making import make_student

__all__ = ["make_student"]
