"""What was answered before: shared by the workers of a run, kept across runs, recorded and replayed."""
