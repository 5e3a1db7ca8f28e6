"""Environments of other versions: planned, made once, and a recorder run inside them."""
