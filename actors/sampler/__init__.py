"""The sampler: vLLM's asynchronous engine under weights that change while it runs."""
