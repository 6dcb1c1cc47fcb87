"""Tools of the maintainers of this library, run from a clone; no wheel has them."""
