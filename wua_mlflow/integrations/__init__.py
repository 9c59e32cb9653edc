"""Callbacks for trainers of other libraries: each translates events, and nothing more."""
