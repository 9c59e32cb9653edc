"""A pipeline's report: what it says, in which order, as markdown, HTML and plain text."""
