"""A search engine of one's own: BM25 over passages, nearest pictures by embedding, and an imported image-search cache.

An index is a folder that `mmsearch index build` writes whole or not at all (`index_folder.py`); the engines only read
it, mapped into memory, so that many workers of one machine share its pages and none holds a corpus.
"""
