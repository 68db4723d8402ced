"""The outside world as the agent meets it: providers behind one gateway, and the actor that carries it."""
