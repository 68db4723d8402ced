"""Where in a picture a referring expression points."""
