"""`mmsearch predict`: the agent over a whole dataset, resumable by row."""
