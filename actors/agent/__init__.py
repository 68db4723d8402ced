"""One episode of a search agent: its records, its grammar, its prompts and its turn loop. No Ray, no torch, no vLLM."""
