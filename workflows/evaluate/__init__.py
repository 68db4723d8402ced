"""Evaluation: arms (a model and the policy it is played under) on the same held-out questions."""
