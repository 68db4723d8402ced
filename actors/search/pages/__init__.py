"""From search results to what their pages say: read, summarise, bound."""
