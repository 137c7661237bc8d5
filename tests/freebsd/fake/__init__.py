"""A FreeBSD kernel for machines that have none: see kernel.py for what it does, build.py for how."""
