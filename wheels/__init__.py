"""Makes, checks and tries what is published: README.md beside this file."""
