"""The embedded world: a synthetic web, its pictures, its search engine, its questions, and a tiny model taught in it."""
