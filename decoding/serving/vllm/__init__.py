"""The contrastive family on vLLM: each request its own strategy, in one batch with vLLM's paged cache.

vLLM finds it by the entry points of this distribution. It imports kernels, checks of parameters, and vLLM, but no other
part of this library that imports a model's code, so that it loads beside any transformers that vLLM has.

- ``plugin``: what vLLM calls first in each of its processes.
- ``settings``: what an engine is started with.
- ``requests``: what a request may ask for, one class a strategy, in a file for each sort of reader.
- ``admission``: whether an engine takes a request.
- ``model``: vLLM's model, which shows its lower layers and reads an amateur beside itself.
- ``rows`` and ``scores``: the scores of many requests in one launch a strategy kind.
- ``scheduler``, ``scheduled_groups`` and ``groups``: requests that need several readings in each step.
- ``processor``: puts these scores where the sampler takes logits from.
- ``offline`` and ``server``: how an engine is started, in Python and from a command line.
"""
