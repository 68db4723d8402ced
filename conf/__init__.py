"""One YAML per run that a person would start; shipped with the package."""
