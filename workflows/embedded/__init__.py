"""The embedded world: a synthetic web, its pictures, search engine and questions, and a tiny model taught in it."""
