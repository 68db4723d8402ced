"""What a person runs, one stage each: thin scripts over actors."""
