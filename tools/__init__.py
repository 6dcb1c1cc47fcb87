"""What only maintainers of this library run, from a clone; no wheel has it."""
