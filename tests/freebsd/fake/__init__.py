"""A FreeBSD kernel for machines that have none: kernel.py is what it does, build.py how."""
