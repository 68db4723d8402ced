"""Adapters of the providers on the web, one file each, named by dotted path in `ProviderSettings`.

An adapter knows its endpoint's requests, replies and error meanings (`seams`); `http` sends for all of them, `shapes`
reads what they have in common. Importing this package imports none of them.
"""
