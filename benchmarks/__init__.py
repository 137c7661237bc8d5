"""What pyktls costs beside others: `python -m benchmarks`, or `make bench` in the lab.

How this works. A *measure* (sending.py, receiving.py, handshakes.py, ...) has several *subjects* do
the same work, and gives tables (tables.py).  The near end of a connection is the subject's, in a
process of its own, whose processor time is what is measured; the far end is another process, here
or on another machine (`--peer`), and always does the same.  Both are children of this program
(agents.py) that do as they are told over a channel and say what that cost them (ends.py).  What a
subject cannot do here stands in the table as the reason, in words.

targets.py holds the figures to what is wanted of them, report.py and plot.py write all of it down.
"""
