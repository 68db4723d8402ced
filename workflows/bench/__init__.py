"""`mmsearch bench`: what this machine reaches, always as a ratio to its own bound measured in the same run."""
