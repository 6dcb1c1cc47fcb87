"""Models: loading, devices, adapters, structure, inputs, forward passes."""
