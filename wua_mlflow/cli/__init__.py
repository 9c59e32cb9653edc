"""The command line ``wua``: its commands and options, and what they print."""
