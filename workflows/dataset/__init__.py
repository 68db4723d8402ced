"""Training data: questions and conversations from any source, through Ray Data, to Parquet shards."""
