"""Asynchronous GRPO: one controller over samplers, searchers, reward evaluators and a learner."""
