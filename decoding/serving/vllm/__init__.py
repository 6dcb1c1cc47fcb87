"""The contrastive family on vLLM: each request its own strategy, in one batch with vLLM's paged cache.

vLLM finds it by the entry points of this distribution. It imports kernels, checks of parameters, and vLLM, but no other
part of this library, so that it loads beside any transformers that vLLM has.

- ``plugin``: what vLLM calls first in each of its processes.
- ``settings``: what an engine is started with.
- ``requests``: what a request may ask for, one class a strategy.
- ``model``: vLLM's model, which shows its lower layers and reads an amateur beside itself.
- ``rows``: the scores of many requests in one launch a strategy kind.
- ``processor``: puts these scores where the sampler takes logits from.
- ``offline`` and ``server``: how an engine is started, in Python and from a command line.
"""
