"""Which keys of a checkpoint's config an implementation does not read, and whether that matters.

A key is read where another value of it gives another output. What it should do is known from the declaration, which
reads every key: the same change is made there, and its output watched beside. What is in effect instead is measured.
"""
