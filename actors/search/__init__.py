"""The outside world as the agent meets it: providers behind one gateway, and the Ray actor that carries it."""
