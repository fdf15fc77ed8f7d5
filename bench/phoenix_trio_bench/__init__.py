"""The benchmark program: workloads, worker processes, statistics, reports.

A package of its own, so that the library's wheel stays without it.  It uses the public
API to move data; only certificates, the simulated link and the command line are internals of
the library, so both packages have the same version.  Everything is measured between two
processes, by the client's clock, and ends when the other *application* has answered,
never when a local buffer has taken the data.
"""
