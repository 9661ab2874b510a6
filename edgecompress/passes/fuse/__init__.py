"""Merges layers that can be one: batch normalization, linear layers in a row, embeddings before recurrent layers."""

from edgecompress.passes.fuse.apply import apply_fuse, plan_fuse

__all__ = ["apply_fuse", "plan_fuse"]
