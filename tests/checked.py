"""The type checker behind jaxtyping in tests."""

from beartype import BeartypeConf, beartype

# An int where a float is declared is right in Python's own typing (scale=16).
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
