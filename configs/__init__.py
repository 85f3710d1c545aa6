"""The YAML files a user starts from, shipped with the packages as data."""
