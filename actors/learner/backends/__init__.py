"""Two engines under one Protocol: plain torch for debugging and one rank, DeepSpeed ZeRO 0-3 for the rest."""
