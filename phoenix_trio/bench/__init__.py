"""The benchmark program: workloads, worker processes, statistics, reports.

Floor 6: on the public API only, like any other application.  Everything is
measured between two processes, by the client's clock, and ends when the other
*application* has answered, never when a local buffer has taken the data.
"""
