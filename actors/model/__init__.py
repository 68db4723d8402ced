"""The policy as a model, shared by all who touch it: files, tokens, pixels, expansion of placeholders, forward pass."""
