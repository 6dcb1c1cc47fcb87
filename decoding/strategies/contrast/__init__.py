"""The contrastive family: readers, their fused streams, the base class."""
