"""One file for each kind of divergence; each has a `WING`."""
