"""How good an episode was: accuracy, format, the price of searching, and the actor that says so."""
